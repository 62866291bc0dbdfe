//! `cargo xtask test`: what CI runs, and how long each part took.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use allod_tests::progress::Steps;
use allod_tests::run::{exists, finish, line};
use allod_tests::{apt, paths, venv};
use anyhow::{Context, Result, ensure};

use crate::conformance::{self, Suite};
use crate::{build, guest_image, kvm_linux, torture};

/// Kills of the daemon, and of a disk's process, in CI.
const DAEMON_KILLS: u32 = 20;

/// What the rooms' own tests judge them by.
const PEERS: &[&str] = &[
    "curl",
    "iperf3",
    "isc-dhcp-client",
    "qemu-system-common",
    "qemu-utils",
];

/// The end-to-end tests, in nextest's words: all test files of the harness but the one that only reads manifests.
const END_TO_END: &str = "package(allod-tests) & kind(test) & not binary(rooms)";

/// Names and installs what tests need.
pub fn needs(steps: &Steps) -> Result<()> {
    let packages = [
        build::HOST_PACKAGES,
        guest_image::HOST_PACKAGES,
        kvm_linux::host_packages(),
        venv::HOST_PACKAGES,
        build::RUN_PACKAGES,
        PEERS,
    ]
    .concat();
    steps.say(&format!("Debian packages: {}", packages.join(" ")));
    steps.say(&venv::CLIENT.describe());
    apt::install(&packages, steps)?;
    venv::CLIENT.install(steps)
}

/// Builds what end-to-end tests run.
pub fn binary_and_image(steps: &Steps) -> Result<()> {
    build::release(steps)?;
    guest_image::build(&guest_image::default_path(), steps)
}

/// Runs everything; a part that fails does not keep the others from running.
pub fn run(steps: &Steps) -> Result<()> {
    needs(steps)?;
    conformance::needs(steps)?;
    let mut totals = Totals::default();
    totals.check("format", steps, &mut build::cargo(), &["fmt", "--all", "--check"]);
    let lints = [
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    totals.check("lints", steps, &mut build::cargo(), &lints);
    totals.one("release build", build::release(steps));
    totals.one(
        "the binary is static",
        build::check_static(&paths::release_binary()),
    );
    totals.one(
        "guest image",
        guest_image::build(&guest_image::default_path(), steps),
    );
    let kvm = kvm_linux::prepare(steps).unwrap_or_else(|error| {
        totals.one("kernel for KVM", Err(error));
        Vec::new()
    });
    totals.one("build tests", build_tests(steps));
    unit_tests(&mut totals, &kvm, steps);
    end_to_end(&mut totals, &kvm, steps);
    totals.one(
        "conformance scs",
        conformance::judge(Suite::Scs, &conformance::Options::whole(), steps),
    );
    totals.one("torture daemon", torture::daemon(DAEMON_KILLS, steps));
    totals.one("torture disk", torture::disk(None, steps));

    println!("\nHow long each part took:\n{}", steps.table());
    for failure in &totals.failures {
        println!("FAILED  {failure}");
    }
    println!("{} passed, {} failed", totals.passed, totals.failed);
    ensure!(totals.failed == 0, "tests failed");
    Ok(())
}

fn build_tests(steps: &Steps) -> Result<()> {
    let arguments = ["test", "--no-run", "--workspace"];
    build::with_progress("build tests", &arguments, &["--workspace"], steps)
}

/// Names and values in the environment of tests.
type Environment<'a> = &'a [(&'static str, OsString)];

fn unit_tests(totals: &mut Totals, kvm: Environment, steps: &Steps) {
    let cargo = || {
        let mut cargo = build::cargo();
        cargo.envs(kvm.iter().cloned());
        cargo
    };
    if exists("cargo-nextest") {
        let filter = format!("not ({END_TO_END})");
        let arguments = ["nextest", "run", "--workspace", "--no-fail-fast", "-E", &filter];
        totals.tests("unit tests", steps, &mut cargo(), &arguments);
    } else {
        let arguments = [
            "test",
            "--quiet",
            "--workspace",
            "--exclude",
            "allod-tests",
            "--no-fail-fast",
        ];
        totals.tests("unit tests", steps, &mut cargo(), &arguments);
        let arguments = ["test", "--quiet", "-p", "allod-tests", "--lib", "--test", "rooms"];
        totals.tests("rooms", steps, &mut cargo(), &arguments);
    }
}

fn end_to_end(totals: &mut Totals, kvm: Environment, steps: &Steps) {
    let mut cargo = build::cargo();
    cargo
        .envs(kvm.iter().cloned())
        .env("ALLOD", paths::release_binary())
        .env("ALLOD_GUEST_IMAGE", guest_image::default_path());
    if exists("cargo-nextest") {
        let arguments = [
            "nextest",
            "run",
            "--workspace",
            "--no-fail-fast",
            "-E",
            END_TO_END,
        ];
        totals.tests("end-to-end tests", steps, &mut cargo, &arguments);
    } else {
        // One at a time: a test looks at all that descends from its process.
        #[rustfmt::skip]
        let arguments = ["test", "-p", "allod-tests", "--no-fail-fast", "--test", "bad_input", "--test", "guest_image", "--test", "hostile_images",
            "--test", "isolation", "--test", "lifecycle", "--test", "sdk", "--test", "volumes", "--", "--test-threads=1"];
        totals.tests("end-to-end tests", steps, &mut cargo, &arguments);
    }
}

/// What passed and what failed.
#[derive(Debug, Default)]
struct Totals {
    passed: u64,
    failed: u64,
    failures: Vec<String>,
}

impl Totals {
    /// One thing that passes or fails.
    fn one(&mut self, name: &str, result: Result<()>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => {
                eprintln!("{name}: {error:#}");
                self.failed += 1;
                self.failures.push(name.to_owned());
            }
        }
    }

    /// A command that passes or fails; what it writes shows only when it fails.
    fn check(&mut self, name: &str, steps: &Steps, command: &mut Command, arguments: &[&str]) {
        let step = steps.start(name);
        let result = finish(command.args(arguments)).map(|_| {
            step.done("");
        });
        self.one(name, result);
    }

    /// A command that runs tests: shown as it runs, and counted.
    fn tests(&mut self, name: &str, steps: &Steps, command: &mut Command, arguments: &[&str]) {
        let step = steps.start(name);
        match run_tests(command.args(arguments)) {
            Ok(counted) => {
                self.passed += counted.passed;
                self.failed += counted.failed;
                let note = format!("{} passed, {} failed", counted.passed, counted.failed);
                if counted.failures.is_empty() && counted.failed == 0 {
                    step.done(&note);
                } else {
                    drop(step);
                }
                self.failures.extend(counted.failures);
            }
            Err(error) => self.one(name, Err(error)),
        }
    }
}

fn run_tests(command: &mut Command) -> Result<Totals> {
    // Both streams in one pipe, in order: nextest reports on standard error, libtest on standard output.
    let (reader, writer) = std::io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {}", line(command)))?;
    // The command holds writing ends; without this the pipe never ends.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut totals = Totals::default();
    for text in BufReader::new(reader).lines() {
        let text = text?;
        println!("{text}");
        count(&text, &mut totals);
    }
    let status = child.wait()?;
    if !status.success() && totals.failed == 0 {
        totals.failed += 1;
        totals
            .failures
            .push(format!("{} ended with {status}", line(command)));
    }
    ensure!(
        totals.passed + totals.failed > 0,
        "{} ran no tests",
        line(command)
    );
    Ok(totals)
}

/// Counts from nextest's "Summary [ 1.2s] 7 tests run: 5 passed (1 slow), 2 failed, 0 skipped", and from libtest's "test
/// result: ok. 6 passed; 0 failed; …".
fn count(text: &str, totals: &mut Totals) {
    let text = text.trim();
    if let Some((_, counts)) = text.strip_prefix("Summary [").and_then(|t| t.split_once("run: ")) {
        add(counts.split(", "), totals);
    } else if let Some((_, counts)) = text
        .strip_prefix("test result: ")
        .and_then(|t| t.split_once(". "))
    {
        add(counts.split("; "), totals);
    } else if text.starts_with("FAIL [") || text.starts_with("TIMEOUT [") || text.starts_with("SIGABRT [") {
        let name = text.split("] ").nth(1).unwrap_or(text).trim().to_owned();
        if !totals.failures.contains(&name) {
            totals.failures.push(name);
        }
    }
}

fn add<'a>(counts: impl Iterator<Item = &'a str>, totals: &mut Totals) {
    for part in counts {
        let mut words = part.split(' ');
        let number = words.next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        match words.next() {
            Some("passed") => totals.passed += number,
            Some("failed" | "timed" | "exec") => totals.failed += number,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_read_from_both_runners() {
        let mut totals = Totals::default();
        for text in [
            "        FAIL [   0.069s] (7/7) allod-tests::rooms the_map",
            "     Summary [   0.069s] 7 tests run: 5 passed (1 slow), 1 failed, 1 timed out, 0 skipped",
            "        FAIL [   0.069s] (7/7) allod-tests::rooms the_map",
            "test result: FAILED. 6 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ] {
            count(text, &mut totals);
        }
        assert_eq!((totals.passed, totals.failed), (11, 4));
        assert_eq!(totals.failures, ["(7/7) allod-tests::rooms the_map"]);
    }

    #[test]
    fn a_runner_that_fails_without_a_count_is_a_failure() {
        let totals = run_tests(Command::new("sh").args(["-c", "echo nothing; exit 3"])).unwrap();
        assert_eq!((totals.passed, totals.failed), (0, 1));
        assert!(run_tests(Command::new("sh").args(["-c", "exit 0"])).is_err());
    }
}
