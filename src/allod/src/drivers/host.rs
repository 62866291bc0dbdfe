//! What the switch's way out needs of the host: an address on the TAP, forwarding, masquerading. All of it is ours
//! alone, and [`undo`] takes it away; the host's own rules are never touched.

use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tracing::{info, warn};

/// The nftables table that belongs to Allod.
const TABLE: &str = "allod";
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// An uplink as the host sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostUplink {
    /// The TAP's name.
    pub tap: String,
    /// The host's address in the external network.
    pub address: Ipv4Addr,
    /// The network's prefix length.
    pub prefix: u8,
    /// The network's MTU.
    pub mtu: u16,
}

/// Why the host could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A program is not installed.
    #[error("the program '{program}' is needed for the external network: install {package} ({source})")]
    Missing {
        /// The program.
        program: &'static str,
        /// Debian's package.
        package: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A program failed.
    #[error("'{command}' failed: {message}")]
    Failed {
        /// What was run.
        command: String,
        /// What it said.
        message: String,
    },
    /// A file of the kernel's could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Give the host its addresses, let it forward, and masquerade what guests send out. Can be repeated.
/// The former state of forwarding is kept in `memory`.
pub fn set_up(uplinks: &[HostUplink], masquerade: bool, memory: &Path) -> Result<(), HostError> {
    for uplink in uplinks {
        let HostUplink {
            tap,
            address,
            prefix,
            mtu,
        } = uplink;
        // The host shall not speak IPv6 to tenants by itself.
        let no_v6 = format!("/proc/sys/net/ipv6/conf/{tap}/disable_ipv6");
        if Path::new(&no_v6).exists() {
            write(Path::new(&no_v6), "1")?;
        }
        ip(&["address", "replace", &format!("{address}/{prefix}"), "dev", tap])?;
        ip(&["link", "set", "dev", tap, "mtu", &mtu.to_string(), "up"])?;
    }
    if !masquerade || uplinks.is_empty() {
        return remove_table();
    }
    let before = fs::read_to_string(FORWARDING).map_err(at(Path::new(FORWARDING)))?;
    if before.trim() != "1" {
        write(memory, before.trim())?;
        write(Path::new(FORWARDING), "1")?;
        info!("IPv4 forwarding is on");
    }
    run("nft", "nftables", &["-f", "-"], &table(uplinks))?;
    warn_of_closed_firewalls();
    Ok(())
}

/// Take away what [`set_up`] did; addresses go with their TAPs.
pub fn undo(memory: &Path) -> Result<(), HostError> {
    remove_table()?;
    if let Ok(before) = fs::read_to_string(memory) {
        write(Path::new(FORWARDING), &before)?;
        fs::remove_file(memory).map_err(at(memory))?;
    }
    Ok(())
}

/// One transaction: the table is replaced as a whole (nft(8), "add, then delete, then add" works whether it was there or not).
fn table(uplinks: &[HostUplink]) -> String {
    let rules: String = uplinks
        .iter()
        .map(
            |HostUplink {
                 tap, address, prefix, ..
             }| { format!("    ip saddr {address}/{prefix} oifname != \"{tap}\" masquerade\n") },
        )
        .collect();
    format!(
        "table inet {TABLE}\n\
         delete table inet {TABLE}\n\
         table inet {TABLE} {{\n  \
         chain postrouting {{\n    \
         type nat hook postrouting priority srcnat; policy accept;\n{rules}  }}\n}}\n"
    )
}

fn remove_table() -> Result<(), HostError> {
    match run(
        "nft",
        "nftables",
        &["-f", "-"],
        &format!("table inet {TABLE}\ndelete table inet {TABLE}\n"),
    ) {
        // Without the program there is no table of ours.
        Err(HostError::Missing { .. }) => Ok(()),
        other => other.map(drop),
    }
}

/// Another table's "drop" wins over any "accept" of ours, and it is not ours to change.
fn warn_of_closed_firewalls() {
    let Ok(chains) = run("nft", "nftables", &["list", "chains"], "") else {
        return;
    };
    if chains
        .lines()
        .any(|line| line.contains("hook forward") && line.contains("policy drop"))
    {
        warn!(
            "a firewall of this host drops forwarded packets by default: guests reach nothing outside until it \
             accepts packets to and from the external network's TAP"
        );
    }
}

fn ip(arguments: &[&str]) -> Result<(), HostError> {
    run("ip", "iproute2", arguments, "").map(drop)
}

fn run(
    program: &'static str,
    package: &'static str,
    arguments: &[&str],
    input: &str,
) -> Result<String, HostError> {
    let missing = |source| HostError::Missing {
        program,
        package,
        source,
    };
    let path = std::env::var("PATH").unwrap_or_default();
    let mut child = Command::new(program)
        .args(arguments)
        // Services may start without the folders of system programs.
        .env("PATH", format!("{path}:/usr/sbin:/sbin:/usr/bin:/bin"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(missing)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading says why by its status.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(missing)?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(HostError::Failed {
            command: format!("{program} {}", arguments.join(" ")),
            message,
        })
    }
}

fn write(path: &Path, text: &str) -> Result<(), HostError> {
    fs::write(path, text).map_err(at(path))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> HostError {
    let path = path.to_owned();
    move |source| HostError::File { path, source }
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn the_host_is_set_up_twice_and_undone_and_other_rules_stay() {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let memory = folder.path().join("forwarding");
        // /proc/sys/net shows the namespace of whoever opens it.
        write(Path::new(FORWARDING), "0").unwrap();
        run(
            "nft",
            "nftables",
            &["-f", "-"],
            "table inet other { chain x { type filter hook input priority 0; }; }\n",
        )
        .unwrap();
        let _tap = vmm::tap::open("allod-ext").unwrap();
        let uplinks = [HostUplink {
            tap: "allod-ext".into(),
            address: [172, 24, 4, 1].into(),
            prefix: 24,
            mtu: 1500,
        }];
        set_up(&uplinks, true, &memory).unwrap();
        set_up(&uplinks, true, &memory).unwrap();
        let show = |arguments: &[&str]| run("ip", "iproute2", arguments, "").unwrap();
        assert!(show(&["address", "show", "dev", "allod-ext"]).contains("inet 172.24.4.1/24"));
        assert!(show(&["link", "show", "dev", "allod-ext"]).contains(",UP"));
        assert_eq!(fs::read_to_string(FORWARDING).unwrap().trim(), "1");
        let rules = || run("nft", "nftables", &["list", "ruleset"], "").unwrap();
        assert!(
            rules().contains("ip saddr 172.24.4.0/24 oifname != \"allod-ext\" masquerade"),
            "{}",
            rules()
        );
        undo(&memory).unwrap();
        undo(&memory).unwrap();
        assert_eq!(fs::read_to_string(FORWARDING).unwrap().trim(), "0");
        assert!(!rules().contains("allod") && rules().contains("table inet other"));
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let error = ip(&["address", "replace", "nonsense", "dev", "lo"])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("ip address replace nonsense") && error.contains("nonsense"),
            "{error}"
        );
        let error = run("allod-absent", "a-package", &[], "").unwrap_err().to_string();
        assert!(error.contains("install a-package"), "{error}");
    }
}
