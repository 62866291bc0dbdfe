//! `cargo xtask demo`: a one-node cloud on this machine, made and used as a newcomer would.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use allod_tests::cloud::{ADMIN, Cloud, Options};
use allod_tests::progress::Steps;
use allod_tests::run::tail;
use allod_tests::ssh::{Key, USER};
use allod_tests::{apt, paths, venv};
use anyhow::{Context, Result, ensure};

use crate::{build, guest_image};

/// The user that the demo makes.
const DEMO: &str = "demo";
const SERVER: &str = "demo-server";

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Runs the demo; with `once` it ends by itself.
pub fn run(once: bool, steps: &Steps) -> Result<()> {
    let packages = [
        build::HOST_PACKAGES,
        guest_image::HOST_PACKAGES,
        venv::HOST_PACKAGES,
        build::RUN_PACKAGES,
    ]
    .concat();
    let missing = apt::missing(&packages)?;
    steps.say("This demo needs, and installs what is missing of:");
    steps.say(&format!("  Debian packages: {}", packages.join(" ")));
    steps.say(&format!(
        "    missing here:  {}",
        if missing.is_empty() {
            "none".into()
        } else {
            missing.join(" ")
        }
    ));
    steps.say(&format!("  {}", venv::CLIENT.describe()));
    steps.say("  unpacked, not installed: Debian's cloud kernel, busybox-static, dropbear-bin, and their libraries\n");
    ensure!(
        nix::unistd::Uid::effective().is_root(),
        "the demo makes a TAP and mounts a pool: run it as root"
    );

    // Ctrl-C reaches our children as well; this process lives on to clean up.
    ctrlc_flag()?;
    apt::install(&packages, steps)?;
    venv::CLIENT.install(steps)?;
    build::release(steps)?;
    let image = guest_image::default_path();
    guest_image::build(&image, steps)?;

    let step = steps.start("start the cloud");
    let mut cloud = Cloud::start(Options {
        namespace: false,
        program: paths::release_binary(),
        ..Options::default()
    })?;
    step.done(&format!("https://{}", cloud.listen()));
    match play(&cloud, &image, steps) {
        Ok(session) => {
            tell(&cloud, &session, steps)?;
            if !once {
                steps.say("\nCtrl-C ends the cloud and removes all that it made.");
                while !INTERRUPTED.load(Ordering::Relaxed) && cloud.is_running()? {
                    thread::sleep(Duration::from_millis(200));
                }
            }
            let step = steps.start("end the cloud");
            if !INTERRUPTED.load(Ordering::Relaxed) {
                cloud.openstack(DEMO, &["server", "delete", "--wait", SERVER])?;
            }
            cloud.end()?;
            step.done("no process, TAP, mount or rule is left");
            Ok(())
        }
        Err(error) => {
            steps.say(&format!(
                "--- end of the daemon's log ---\n{}",
                cloud.log(40) + &cloud.children_logs(15)
            ));
            let console = cloud
                .console_log(DEMO, SERVER)
                .unwrap_or_else(|e| format!("(not to be had: {e:#})"));
            steps.say(&format!(
                "--- end of the guest's console ---\n{}",
                tail(&console, 30)
            ));
            let kept = paths::target().join("demo-daemon.log");
            if fs::copy(cloud.log_path(), &kept).is_ok() {
                steps.say(&format!("The whole log is kept in {}", kept.display()));
            }
            if let Err(error) = cloud.end() {
                steps.say(&format!("while cleaning up: {error:#}"));
            }
            Err(error)
        }
    }
}

/// What the person at the keyboard can go on with.
struct Session {
    key: Key,
    address: String,
    password: String,
}

/// Everything that is done through the API, and the login.
fn play(cloud: &Cloud, image: &Path, steps: &Steps) -> Result<Session> {
    let admin = |arguments: &[&str]| cloud.openstack(ADMIN, arguments);
    let demo = |arguments: &[&str]| cloud.openstack(DEMO, arguments);
    let step = |name: &str, work: &dyn Fn() -> Result<String>| -> Result<()> {
        ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
        let step = steps.start(name);
        let note = work()?;
        step.done(&note);
        Ok(())
    };
    let quiet = |result: Result<String>| result.map(|_| String::new());

    let password = random_password()?;
    step("project and user", &|| {
        admin(&["project", "create", DEMO])?;
        admin(&["user", "create", "--project", DEMO, "--password", &password, DEMO])?;
        admin(&["role", "add", "--project", DEMO, "--user", DEMO, "member"])?;
        cloud.add_credentials(DEMO, DEMO, &password, DEMO)?;
        Ok(format!("user {DEMO} of project {DEMO}"))
    })?;
    let file = image.to_str().context("path is not UTF-8")?;
    step("image upload", &|| {
        #[rustfmt::skip]
        let arguments = ["image", "create", "--disk-format", "qcow2", "--container-format", "bare", "--public",
            "--file", file, "allod-guest"];
        quiet(admin(&arguments))
    })?;
    step("network and subnet", &|| {
        demo(&["network", "create", "demo-net"])?;
        quiet(demo(&[
            "subnet",
            "create",
            "--network",
            "demo-net",
            "--subnet-range",
            "10.0.0.0/24",
            "demo-subnet",
        ]))
    })?;
    step("router to ext-net", &|| {
        demo(&["router", "create", "demo-router"])?;
        demo(&["router", "set", "--external-gateway", "ext-net", "demo-router"])?;
        quiet(demo(&["router", "add", "subnet", "demo-router", "demo-subnet"]))
    })?;
    let key = Key::generate(cloud.folder(), "demo-key")?;
    let public = key.public();
    let public = public.to_str().context("path is not UTF-8")?;
    step("key pair", &|| {
        quiet(demo(&["keypair", "create", "--public-key", public, "demo-key"]))
    })?;
    step("security group rules", &|| {
        demo(&["security", "group", "create", "demo-group"])?;
        demo(&[
            "security",
            "group",
            "rule",
            "create",
            "--protocol",
            "tcp",
            "--dst-port",
            "22",
            "demo-group",
        ])?;
        quiet(demo(&[
            "security",
            "group",
            "rule",
            "create",
            "--protocol",
            "icmp",
            "demo-group",
        ]))
    })?;
    step("server", &|| {
        #[rustfmt::skip]
        let arguments = ["server", "create", "--wait", "--flavor", "SCS-1L-1", "--image", "allod-guest", "--network",
            "demo-net", "--key-name", "demo-key", "--security-group", "demo-group", SERVER];
        quiet(demo(&arguments))
    })?;
    let address = std::cell::RefCell::new(String::new());
    step("floating IP", &|| {
        let floating = cloud.field(
            DEMO,
            &["floating", "ip", "create", "ext-net"],
            "floating_ip_address",
        )?;
        demo(&["server", "add", "floating", "ip", SERVER, &floating])?;
        *address.borrow_mut() = floating.clone();
        Ok(floating)
    })?;
    let address = address.into_inner();
    step("login by SSH", &|| {
        cloud.wait_for_ssh(&key, &address, Duration::from_secs(120))?;
        let said = cloud.ssh(
            &key,
            &address,
            "echo \"$(id -un)@$(hostname), Linux $(uname -r)\"",
        )?;
        Ok(said.trim().to_owned())
    })?;
    Ok(Session {
        key,
        address,
        password,
    })
}

/// Times, credentials, and what to type next.
fn tell(cloud: &Cloud, session: &Session, steps: &Steps) -> Result<()> {
    let clouds = cloud.clouds_yaml();
    let openstack = venv::openstack();
    let mut ssh: Vec<String> = session.key.options();
    ssh.extend(["-o".into(), format!("BindInterface={}", cloud.options().tap)]);
    let lines = [
        "\nHow long each step took:".to_owned(),
        steps.table(),
        format!("API            https://{}", cloud.listen()),
        format!(
            "clouds.yaml    {} (with cacert {})",
            clouds.display(),
            cloud.ca().display()
        ),
        format!(
            "administrator  --os-cloud {ADMIN}: user admin, password {}",
            cloud.admin_password()?
        ),
        format!(
            "tenant         --os-cloud {DEMO}: user {DEMO}, password {}",
            session.password
        ),
        format!(
            "client         OS_CLIENT_CONFIG_FILE={} {} --os-cloud {DEMO} server list",
            clouds.display(),
            openstack.display()
        ),
        format!("guest          ssh {} {USER}@{}", ssh.join(" "), session.address),
    ];
    steps.say(&lines.join("\n"));
    Ok(())
}

/// From the kernel's generator, as hexadecimal digits.
fn random_password() -> Result<String> {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").context("cannot read randomness")?;
    Ok(uuid.trim().replace('-', ""))
}

/// Ctrl-C and SIGTERM set a flag; a second Ctrl-C is like the first.
fn ctrlc_flag() -> Result<()> {
    use nix::sys::signal::{SigSet, Signal};
    let mut set = SigSet::empty();
    set.add(Signal::SIGINT);
    set.add(Signal::SIGTERM);
    // Blocked in this thread and all that it starts; one thread waits for them.
    set.thread_block()?;
    thread::spawn(move || {
        while set.wait().is_ok() {
            INTERRUPTED.store(true, Ordering::Relaxed);
        }
    });
    Ok(())
}
