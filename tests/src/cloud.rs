//! A one-node cloud to drive from outside.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::host::{self, Traces, wait_for};
use crate::http::{self, Client, Trust};
use crate::netns::Netns;
use crate::run::{finish, output, tail};
use crate::ssh::Key;
use crate::{paths, venv};

/// Where a cloud listens, and what its external network is.
#[derive(Debug, Clone)]
pub struct Options {
    /// In a network namespace of its own, instead of on the host.
    pub namespace: bool,
    /// Address and port of the APIs.
    pub listen: SocketAddr,
    /// The TAP of `ext-net`.
    pub tap: String,
    /// The range of `ext-net`.
    pub external: String,
    /// More lines for the configuration file, after `[compute]`.
    pub compute: String,
    /// More sections of the configuration file.
    pub more: String,
    /// The program.
    pub program: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            namespace: true,
            listen: SocketAddr::from(([127, 0, 0, 1], 8443)),
            tap: "allod-ext".into(),
            external: "172.24.4.0/24".into(),
            compute: "engine = \"qemu\"\nqemu_accel = \"tcg\"\n".into(),
            more: String::new(),
            program: paths::allod(),
        }
    }
}

/// A cloud under test. Dropped, it ends with all that it started.
#[derive(Debug)]
pub struct Cloud {
    options: Options,
    // Before `netns` and `folder`: they must outlive what runs in them.
    daemon: Option<Child>,
    before: Traces,
    ended: bool,
    netns: Option<Netns>,
    folder: TempDir,
}

/// The administrator's cloud in `clouds.yaml`.
pub const ADMIN: &str = "allod";

impl Cloud {
    /// Starts a cloud with an empty state directory and waits until it answers.
    pub fn start(options: Options) -> Result<Self> {
        let mut cloud = Self::prepare(options)?;
        cloud.serve()?;
        Ok(cloud)
    }

    /// The same without starting the daemon.
    pub fn prepare(options: Options) -> Result<Self> {
        host::adopt_orphans()?;
        // Short, because sockets below it have paths of at most 107 bytes; on a disk, because volumes lie there; and
        // not below a home directory that jailed children could not enter.
        let folder = tempfile::Builder::new().prefix("allod-").tempdir_in("/var/tmp")?;
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
        let netns = options.namespace.then(Netns::new).transpose()?;
        let before = Traces::take(netns.as_ref(), folder.path())?;
        let cloud = Self {
            options,
            daemon: None,
            before,
            ended: false,
            netns,
            folder,
        };
        fs::write(
            cloud.config(),
            format!(
                "[server]\nlisten = \"{}\"\n\n[storage]\ndir = \"{}\"\nloop_pool_gib = 8\nloop_pool_preallocate = false\n\n[compute]\n{}\n\
                 {}\n[network]\nexternal_cidr = \"{}\"\nexternal_tap = \"{}\"\n",
                cloud.options.listen,
                cloud.state().display(),
                cloud.options.compute,
                cloud.options.more,
                cloud.options.external,
                cloud.options.tap,
            ),
        )?;
        Ok(cloud)
    }

    /// Starts the daemon and waits until it answers.
    pub fn serve(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = self.command(&self.options.program);
        command.arg("serve").arg("--config").arg(self.config());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Ctrl-C is for us; we end the daemon ourselves.
        command.process_group(0);
        let daemon = command.spawn().with_context(|| {
            format!(
                "cannot start {}; build it, or set ALLOD",
                self.options.program.display()
            )
        })?;
        self.daemon = Some(daemon);
        self.wait_until_it_answers(Duration::from_secs(60))
    }

    /// Waits for the first answer of `/healthz`.
    pub fn wait_until_it_answers(&mut self, limit: Duration) -> Result<()> {
        let began = Instant::now();
        loop {
            if let Some(status) = self
                .daemon
                .as_mut()
                .and_then(|d| d.try_wait().transpose())
                .transpose()?
            {
                self.daemon = None;
                bail!("the daemon ended with {status}:\n{}", self.log(20));
            }
            if let Ok(mut client) = self.client()
                && client
                    .request("GET", "/healthz", None)
                    .is_ok_and(|a| a.status == 200)
            {
                return Ok(());
            }
            if began.elapsed() > limit {
                bail!(
                    "the daemon does not answer after {} s:\n{}",
                    limit.as_secs(),
                    self.log(20)
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The folder that everything of this cloud lies in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its state directory.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    /// Its daemon's log.
    pub fn log_path(&self) -> PathBuf {
        self.folder.path().join("daemon.log")
    }

    /// The last lines of its daemon's log.
    pub fn log(&self, lines: usize) -> String {
        tail(&fs::read_to_string(self.log_path()).unwrap_or_default(), lines).to_owned()
    }

    /// The last lines of its children's logs, each under its name.
    pub fn children_logs(&self, lines: usize) -> String {
        let mut text = String::new();
        let mut folders = vec![self.state().join("run"), self.state().join("log")];
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(folder)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
            {
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|e| e == "log") {
                    let log = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
                    text += &format!("\n--- end of {} ---\n{}", path.display(), tail(&log, lines));
                }
            }
        }
        text
    }

    /// What clients verify it with.
    pub fn ca(&self) -> PathBuf {
        self.state().join("ca.pem")
    }

    /// What `openstack` reads: the daemon's own file, and the users that were added here.
    pub fn clouds_yaml(&self) -> PathBuf {
        let extended = self.folder.path().join("clouds.yaml");
        if extended.exists() {
            extended
        } else {
            self.state().join("clouds.yaml")
        }
    }

    /// The address of its APIs.
    pub fn listen(&self) -> SocketAddr {
        self.options.listen
    }

    /// How it was started.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Its network namespace.
    pub fn netns(&self) -> Option<&Netns> {
        self.netns.as_ref()
    }

    /// The daemon's process.
    pub fn daemon_pid(&self) -> Option<i32> {
        self.daemon.as_ref().map(|d| d.id().cast_signed())
    }

    /// Whether the daemon still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(match &mut self.daemon {
            Some(daemon) => daemon.try_wait()?.is_none(),
            None => false,
        })
    }

    /// Everything that this cloud runs, the daemon included.
    pub fn processes(&self) -> Vec<host::Process> {
        let spare: Vec<i32> = self.daemon_pid().into_iter().collect();
        host::descendants(std::process::id().cast_signed(), &spare)
    }

    /// A command that will run where the cloud runs.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.netns
            .as_ref()
            .map_or_else(|| Command::new(program.as_ref()), |n| n.command(program.as_ref()))
    }

    /// Runs a function on a thread where the cloud's addresses are.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        match &self.netns {
            Some(netns) => netns.enter(work),
            None => work(),
        }
    }

    /// The CA to verify it with, for clients of our own.
    pub fn trust(&self) -> Result<Trust> {
        http::trust(&self.ca())
    }

    /// A connection of our own client.
    pub fn client(&self) -> Result<Client> {
        let trust = self.trust()?;
        self.enter(|| Client::connect(self.options.listen, &trust, Duration::from_secs(30)))
    }

    /// The administrator's password.
    pub fn admin_password(&self) -> Result<String> {
        Ok(fs::read_to_string(self.state().join("secrets/admin-password"))?
            .trim()
            .to_owned())
    }

    /// Adds a user's entry to this cloud's `clouds.yaml`.
    pub fn add_credentials(&self, name: &str, user: &str, password: &str, project: &str) -> Result<()> {
        let mut text = fs::read_to_string(self.clouds_yaml())?;
        text += &format!(
            "  {name}:\n    auth:\n      auth_url: https://{}/identity/v3\n      username: {user}\n      \
             password: {password}\n      project_name: {project}\n      user_domain_id: default\n      \
             project_domain_id: default\n    cacert: {}\n    identity_api_version: 3\n",
            self.options.listen,
            self.ca().display(),
        );
        let path = self.folder.path().join("clouds.yaml");
        fs::write(&path, text)?;
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        Ok(())
    }

    /// An `openstack` command as someone of `clouds.yaml`.
    pub fn openstack_command(&self, who: &str, arguments: &[&str]) -> Command {
        let mut command = self.command(venv::openstack());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"OS_")) {
            command.env_remove(name);
        }
        command
            .env("OS_CLIENT_CONFIG_FILE", self.clouds_yaml())
            .env("OS_CLOUD", who)
            .args(arguments);
        command
    }

    /// Runs `openstack` and gives what it wrote.
    pub fn openstack(&self, who: &str, arguments: &[&str]) -> Result<String> {
        finish(&mut self.openstack_command(who, arguments))
    }

    /// Runs `openstack … -f json` and gives the answer.
    pub fn json(&self, who: &str, arguments: &[&str]) -> Result<Value> {
        let text = self.openstack(who, &[arguments, &["-f", "json"]].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("openstack {}: not JSON: {text}", arguments.join(" ")))
    }

    /// Runs `openstack … -f json` and gives one field, as text.
    pub fn field(&self, who: &str, arguments: &[&str], field: &str) -> Result<String> {
        let value = self.json(who, arguments)?;
        match &value[field] {
            Value::Null => bail!("openstack {}: no {field} in {value}", arguments.join(" ")),
            Value::String(text) => Ok(text.clone()),
            other => Ok(other.to_string()),
        }
    }

    /// Runs `openstack` and gives what it complained, or fails if it did not.
    pub fn refused(&self, who: &str, arguments: &[&str]) -> Result<String> {
        let output = output(&mut self.openstack_command(who, arguments))?;
        if output.status.success() {
            bail!("openstack {} was not refused", arguments.join(" "));
        }
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// An SSH command to a guest, through the TAP of the external network.
    pub fn ssh_command(&self, key: &Key, address: &str, script: &str) -> Command {
        let mut command = self.command("ssh");
        command
            .args(key.options())
            .args(["-o", &format!("BindInterface={}", self.options.tap)]);
        command.arg(format!("{}@{address}", crate::ssh::USER)).arg(script);
        command
    }

    /// Runs a script in a guest.
    pub fn ssh(&self, key: &Key, address: &str, script: &str) -> Result<String> {
        finish(&mut self.ssh_command(key, address, script))
    }

    /// Waits until a guest lets us in.
    pub fn wait_for_ssh(&self, key: &Key, address: &str, limit: Duration) -> Result<()> {
        let mut last = String::new();
        let mut look = || {
            let output = output(&mut self.ssh_command(key, address, "true"))?;
            last = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Ok(output.status.success().then_some(()))
        };
        let result = wait_for(&format!("SSH to {address}"), limit, &mut look);
        result.with_context(|| format!("ssh says: {last}"))
    }

    /// A guest's console log.
    pub fn console_log(&self, who: &str, server: &str) -> Result<String> {
        self.openstack(who, &["console", "log", "show", server])
    }

    /// Waits until a guest's console log says this.
    pub fn wait_for_console(&self, who: &str, server: &str, what: &str, limit: Duration) -> Result<String> {
        wait_for(&format!("{what:?} on the console of {server}"), limit, || {
            let log = self.console_log(who, server)?;
            Ok(log.contains(what).then_some(log))
        })
    }

    /// Kills the daemon as a crash would, and buries it.
    pub fn kill_daemon(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("no daemon runs")?;
        daemon.kill()?;
        daemon.wait()?;
        Ok(())
    }

    /// Ends the daemon alone, as a service manager would; guests run on.
    pub fn terminate_daemon(&mut self) -> Result<()> {
        let Some(mut daemon) = self.daemon.take() else {
            return Ok(());
        };
        kill(Pid::from_raw(daemon.id().cast_signed()), Signal::SIGTERM)?;
        let waited = wait_for("the daemon's end after SIGTERM", Duration::from_secs(30), || {
            Ok(daemon.try_wait()?)
        });
        match waited {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => bail!("the daemon ended with {status} after SIGTERM:\n{}", self.log(20)),
            Err(error) => {
                let _ = daemon.kill();
                let _ = daemon.wait();
                Err(error)
            }
        }
    }

    /// Ends everything and checks that nothing is left: no process, interface, table, mount or loop device.
    pub fn end(mut self) -> Result<()> {
        self.end_everything()
    }

    fn end_everything(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        let terminated = self.terminate_daemon();
        let stopped = if self.state().exists() {
            let mut command = self.command(&self.options.program);
            finish(command.arg("stop").arg("--config").arg(self.config())).map(drop)
        } else {
            Ok(())
        };
        // What was told to end may take a moment to be gone.
        let left = wait_for("the end of all processes", Duration::from_secs(5), || {
            Ok(self.processes().is_empty().then_some(()))
        })
        .map_err(|_| {
            let left = self.processes();
            host::kill_all(&left);
            let names: Vec<_> = left
                .iter()
                .map(|p| format!("{} ({})", p.command, p.pid))
                .collect();
            anyhow::anyhow!("processes left behind: {}", names.join("; "))
        });
        // The kernel detaches a loop device when its last user is gone, a moment later.
        let look = || Traces::take(self.netns.as_ref(), self.folder.path());
        let clean = || look().and_then(|now| Traces::check(&self.before, &now));
        let gone = wait_for("no traces", Duration::from_secs(5), || Ok(clean().ok()));
        let traces = gone.or_else(|_| {
            let now = look()?;
            // A stranger that copied our mounts into a mount namespace of its own keeps the device, not we.
            let strangers = host::holders(self.folder.path());
            let ours = if strangers.is_empty() {
                now.clone()
            } else {
                now.without_loops()
            };
            let result = Traces::check(&self.before, &ours);
            self.sweep(&now);
            result
        });
        terminated.and(stopped).and(left).and(traces)
    }

    /// Removes by force what `allod stop` left, so that one failed test does not fail the next.
    fn sweep(&self, now: &Traces) {
        for mount in now.mounts.difference(&self.before.mounts) {
            let _ = output(Command::new("umount").args(["--lazy", mount]));
        }
        for device in now.loops.difference(&self.before.loops) {
            let _ = output(
                Command::new("losetup")
                    .arg("--detach")
                    .arg(device.replace("/sys/block", "/dev")),
            );
        }
        for link in now.links.difference(&self.before.links) {
            let _ = output(self.command("ip").args(["link", "del", link]));
        }
        for table in now.tables.difference(&self.before.tables) {
            let _ = output(self.command("nft").arg("delete").args(table.split(' ')));
        }
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- end of the daemon's log ---\n{}{}",
                self.log(40),
                self.children_logs(15)
            );
        }
        if let Err(error) = self.end_everything() {
            eprintln!("while ending the cloud: {error:#}");
        }
    }
}
