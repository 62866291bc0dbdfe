//! What a cloud leaves on its host: processes, interfaces, rules, mounts, loop devices.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::netns::Netns;
use crate::run::{finish, output};

/// From now on orphans of our children become our children, so that none of them can hide.
pub fn adopt_orphans() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true).context("cannot become a child subreaper")
}

/// A process, as /proc tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its parent's id.
    pub parent: i32,
    /// `Z` is a zombie.
    pub state: char,
    /// Its command line; for a zombie its name.
    pub command: String,
}

/// All processes.
pub fn processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            // "pid (name) state ppid …": the name may hold spaces and brackets.
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
            let mut fields = rest.split_whitespace();
            let state = fields.next()?.chars().next()?;
            let parent = fields.next()?.parse().ok()?;
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line)
                .replace('\0', " ")
                .trim()
                .to_owned();
            Some(Process {
                pid,
                parent,
                state,
                command: if line.is_empty() { name.to_owned() } else { line },
            })
        })
        .collect()
}

/// Everything that descends from a process, zombies left out. Dead orphans of a cloud that came to us are buried, as
/// init would do; `spare` names children that a `std::process::Child` waits for.
pub fn descendants(of: i32, spare: &[i32]) -> Vec<Process> {
    let mut children: BTreeMap<i32, Vec<Process>> = BTreeMap::new();
    for process in processes() {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found = Vec::new();
    let mut todo = vec![of];
    while let Some(pid) = todo.pop() {
        for process in children.remove(&pid).unwrap_or_default() {
            todo.push(process.pid);
            if process.state != 'Z' {
                found.push(process);
            } else if pid == std::process::id().cast_signed()
                && !spare.contains(&process.pid)
                && ["allod", "exe", "qemu"]
                    .iter()
                    .any(|name| process.command.starts_with(name))
            {
                let _ = waitpid(Pid::from_raw(process.pid), Some(WaitPidFlag::WNOHANG));
            }
        }
    }
    found
}

/// Kills these and all that descend from us through them.
pub fn kill_all(processes: &[Process]) {
    for process in processes {
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
}

/// What of a host a cloud can change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    /// Interfaces.
    pub links: BTreeSet<String>,
    /// nftables tables.
    pub tables: BTreeSet<String>,
    /// Mount points below a folder.
    pub mounts: BTreeSet<String>,
    /// Loop devices on files below a folder.
    pub loops: BTreeSet<String>,
}

impl Traces {
    /// Looks at the host, or into a namespace, and at what concerns a state directory.
    pub fn take(netns: Option<&Netns>, folder: &Path) -> Result<Self> {
        let command = |program: &str| netns.map_or_else(|| Command::new(program), |n| n.command(program));
        let links = finish(command("ip").args(["-o", "link", "show"]))?;
        let links = links
            .lines()
            .filter_map(|l| l.split(": ").nth(1))
            .map(|l| l.split('@').next().unwrap_or(l).into());
        let tables = output(command("nft").args(["list", "tables"]))?;
        let tables = String::from_utf8_lossy(&tables.stdout)
            .lines()
            .map(str::to_owned)
            .collect();
        let folder = folder.to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mounts = mounts
            .lines()
            .filter_map(|l| l.split(' ').nth(1))
            .filter(|m| m.starts_with(&folder));
        let mut loops = BTreeSet::new();
        for entry in fs::read_dir("/sys/block")? {
            let path = entry?.path();
            if let Ok(file) = fs::read_to_string(path.join("loop/backing_file"))
                && file.starts_with(&folder)
            {
                loops.insert(path.display().to_string());
            }
        }
        Ok(Self {
            links: links.collect(),
            tables,
            mounts: mounts.map(str::to_owned).collect(),
            loops,
        })
    }

    /// The same, loop devices not looked at.
    pub fn without_loops(&self) -> Self {
        Self {
            loops: BTreeSet::new(),
            ..self.clone()
        }
    }

    /// Says what is there now and was not before.
    pub fn check(before: &Self, now: &Self) -> Result<()> {
        let mut left = Vec::new();
        for (what, before, now) in [
            ("interface", &before.links, &now.links),
            ("nftables table", &before.tables, &now.tables),
            ("mount", &before.mounts, &now.mounts),
            ("loop device", &before.loops, &now.loops),
        ] {
            left.extend(now.difference(before).map(|name| format!("{what} {name}")));
        }
        if left.is_empty() {
            Ok(())
        } else {
            bail!("left behind: {}", left.join(", "))
        }
    }
}

/// Processes in whose mount namespace something is mounted below a folder, or from a file below it.
pub fn holders(folder: &Path) -> Vec<String> {
    let folder = folder.to_string_lossy();
    let sees = |p: &Process| {
        fs::read_to_string(format!("/proc/{}/mountinfo", p.pid)).is_ok_and(|mounts| mounts.contains(&*folder))
    };
    processes()
        .into_iter()
        .filter(sees)
        .map(|p| format!("{} ({})", p.command, p.pid))
        .collect()
}

/// Waits until a condition holds; looks often at first, then less often.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if began.elapsed() > limit {
            bail!("{what}: not within {} s", limit.as_secs());
        }
        thread::sleep(pause);
        pause = (pause * 3 / 2).min(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orphans_are_found() {
        adopt_orphans().unwrap();
        let me = std::process::id().cast_signed();
        // The shell ends at once and leaves its child behind.
        finish(Command::new("sh").args(["-c", "sleep 1234.5 >/dev/null 2>&1 & exit 0"])).unwrap();
        let left = descendants(me, &[]);
        assert!(left.iter().any(|p| p.command == "sleep 1234.5"), "{left:?}");
        kill_all(&left);
        wait_for("the orphan's end", Duration::from_secs(5), || {
            Ok(descendants(me, &[])
                .iter()
                .all(|p| p.command != "sleep 1234.5")
                .then_some(()))
        })
        .unwrap();
    }
}
