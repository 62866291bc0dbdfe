//! `cargo xtask torture daemon`: kill -9 under load, again and again. Every acknowledged write must be there, and guests
//! and packets must not notice.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use allod_tests::cloud::{ADMIN, Cloud, Options};
use allod_tests::host::Process;
use allod_tests::progress::Steps;
use allod_tests::run::finish;
use allod_tests::tenant::{self, Tenant};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::load::Load;

const CLIENTS: usize = 4;

/// Kills the daemon this often and looks after each time.
pub fn run(kills: u32, steps: &Steps) -> Result<()> {
    let step = steps.start("torture daemon: cloud and guest");
    let mut cloud = Cloud::start(Options::default())?;
    let result = prepare(&cloud).and_then(|guest| {
        step.done(&format!("guest at {}", guest.address));
        torture(&mut cloud, &guest, kills, steps)
    });
    if let Err(error) = result {
        steps.say(&format!(
            "--- end of the daemon's log ---\n{}",
            cloud.log(40) + &cloud.children_logs(15)
        ));
        return Err(error);
    }
    let step = steps.start("torture daemon: end");
    cloud.end()?;
    step.done("nothing is left");
    Ok(())
}

/// The guest that must not notice.
struct Guest {
    address: String,
    boot_id: String,
    key: allod_tests::ssh::Key,
    token: String,
}

fn prepare(cloud: &Cloud) -> Result<Guest> {
    tenant::prepare(cloud)?;
    let tenant = Tenant::new(cloud, "torture")?;
    tenant.network("10.0.0.0/24")?;
    tenant.ssh_group()?;
    tenant.run(&[
        "security",
        "group",
        "rule",
        "create",
        "--protocol",
        "icmp",
        "torture",
    ])?;
    tenant.server("survivor", &["torture"], &["--network", "torture"])?;
    let address = tenant.floating_ip("survivor")?;
    tenant.wait_for_ssh("survivor", &address)?;
    let boot_id = tenant.boot_id(&address)?;
    // The administrator's project, where quotas do not count the tenant's own.
    let token = cloud.field(ADMIN, &["token", "issue"], "id")?;
    Ok(Guest {
        address,
        boot_id,
        key: tenant.key.clone(),
        token,
    })
}

fn torture(cloud: &mut Cloud, guest: &Guest, kills: u32, steps: &Steps) -> Result<()> {
    let children = children(cloud);
    ensure!(
        children.iter().any(|p| p.command.contains("qemu-system")),
        "no machine runs: {children:?}"
    );
    let before: BTreeSet<i32> = children.iter().map(|p| p.pid).collect();
    let load = Load::new(cloud, guest.token.clone())?;
    let flow = Flow::start(cloud, &guest.address)?;
    let step = steps.start(&format!("torture daemon: {kills} kills"));
    let mut slowest = Duration::ZERO;
    let netns = cloud.netns().context("torture runs in a namespace")?.path();
    let load = &load;
    let outcome = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let netns = netns.clone();
                scope.spawn(move || allod_tests::netns::join(&netns).map(|()| load.client(number)))
            })
            .collect();
        let result = (1..=kills).try_for_each(|number| {
            pause(load)?;
            cloud.kill_daemon()?;
            check_database(&cloud.state())?;
            let began = Instant::now();
            cloud.serve()?;
            slowest = slowest.max(began.elapsed());
            load.compare(cloud.client()?)?;
            let now: BTreeSet<i32> = children_now(cloud);
            ensure!(now == before, "children were {before:?} and are {now:?}");
            step.at(
                u64::from(number),
                u64::from(kills),
                &format!("{} writes", load.acknowledged()),
            );
            Ok(())
        });
        load.stop();
        for client in clients {
            client
                .join()
                .map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        result
    });
    outcome?;
    let packets = flow.end()?;
    let boot_id = cloud.ssh(&guest.key, &guest.address, "cat /proc/sys/kernel/random/boot_id")?;
    ensure!(boot_id.trim() == guest.boot_id, "the guest has booted anew");
    step.done("");
    println!(
        "torture daemon: {kills} kills, {} writes acknowledged, 0 lost, {packets} packets of a flow, 0 lost, slowest start \
         {:.2} s, children and boot_id unchanged",
        load.acknowledged(),
        slowest.as_secs_f64()
    );
    Ok(())
}

/// Until some writes went through, and a moment that is never the same.
fn pause(load: &Load) -> Result<()> {
    let began = Instant::now();
    let target = load.acknowledged() + 20;
    while load.acknowledged() < target {
        ensure!(
            began.elapsed() < Duration::from_secs(30),
            "the load came to a halt"
        );
        thread::sleep(Duration::from_millis(2));
    }
    let jitter = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let jitter = u64::from_str_radix(&jitter[..4], 16)?;
    thread::sleep(Duration::from_micros(jitter * 8));
    Ok(())
}

/// What the daemon runs: guests, disks, the switch.
fn children(cloud: &Cloud) -> Vec<Process> {
    let daemon = cloud.daemon_pid();
    // Not by the program's name: a helper of the daemon's bears it between fork and exec.
    let is_ours = |p: &Process| p.command.starts_with("/proc/self/exe ") || p.command.contains("qemu-system");
    cloud
        .processes()
        .into_iter()
        .filter(|p| Some(p.pid) != daemon && is_ours(p))
        .collect()
}

fn children_now(cloud: &Cloud) -> BTreeSet<i32> {
    children(cloud).into_iter().map(|p| p.pid).collect()
}

/// SQLite's own check, on a copy of what the dead daemon left.
fn check_database(state: &Path) -> Result<()> {
    let copy = tempfile::tempdir_in("/var/tmp")?;
    for entry in fs::read_dir(state.join("store"))? {
        let path = entry?.path();
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .context("path is not UTF-8")?
            .to_owned();
        if path.is_file() {
            fs::copy(&path, copy.path().join(&name))?;
        }
    }
    // All names first: SQLite removes a database's log when it closes it.
    let mut databases = Vec::new();
    for entry in fs::read_dir(copy.path())? {
        let path = entry?.path();
        if fs::read(&path)?.starts_with(b"SQLite format 3\0") {
            databases.push(path);
        }
    }
    for path in &databases {
        let script = "import sqlite3, sys\n\
                      print(sqlite3.connect(sys.argv[1]).execute('PRAGMA integrity_check').fetchone()[0])";
        let said = finish(Command::new("/usr/bin/python3").args(["-c", script]).arg(path))?;
        if said.trim() != "ok" {
            bail!("integrity_check of {}: {said}", path.display());
        }
    }
    ensure!(
        !databases.is_empty(),
        "no database lies in {}",
        state.join("store").display()
    );
    Ok(())
}

/// Echo requests to the guest, a hundred a second, each of which must be answered.
struct Flow {
    ping: Child,
    reader: Option<thread::JoinHandle<BTreeSet<u64>>>,
}

impl Drop for Flow {
    fn drop(&mut self) {
        let _ = self.ping.kill();
        let _ = self.ping.wait();
    }
}

impl Flow {
    fn start(cloud: &Cloud, address: &str) -> Result<Self> {
        let mut command = cloud.command("ping");
        command
            .args(["-n", "-i", "0.01", address])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut ping = command.spawn().context("cannot start ping")?;
        let output = BufReader::new(ping.stdout.take().context("no output")?);
        let reader = thread::spawn(move || {
            let lines = output.lines().map_while(Result::ok);
            lines
                .filter_map(|l| l.split("icmp_seq=").nth(1)?.split(' ').next()?.parse().ok())
                .collect()
        });
        Ok(Self {
            ping,
            reader: Some(reader),
        })
    }

    /// How many packets went, none of which was lost. The last one may still have been on its way.
    fn end(mut self) -> Result<u64> {
        kill(Pid::from_raw(self.ping.id().cast_signed()), Signal::SIGINT)?;
        self.ping.wait()?;
        let reader = self.reader.take().context("the flow has ended")?;
        let answered = reader
            .join()
            .map_err(|_| anyhow::anyhow!("the reader of ping panicked"))?;
        let last = answered.last().copied().context("no packet was answered")?;
        let lost: Vec<_> = (1..=last).filter(|number| !answered.contains(number)).collect();
        ensure!(
            lost.is_empty(),
            "{} of {last} packets are lost: {:?}",
            lost.len(),
            &lost[..lost.len().min(20)]
        );
        Ok(last)
    }
}
