//! Developer commands: `cargo xtask COMMAND`.

mod bench;
mod build;
mod conformance;
mod demo;
mod fuzz;
mod guest_image;
mod kvm_linux;
mod test;
mod torture;

use std::path::PathBuf;
use std::process::ExitCode;

use allod_tests::progress::Steps;
use clap::{Parser, Subcommand};

/// Developer commands. What they need from Debian's packages and PyPI they install themselves.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a one-node cloud, boot a server on it through the API, and log in to it.
    Demo {
        /// End by itself, instead of at Ctrl-C.
        #[arg(long)]
        once: bool,
    },
    /// What CI runs: format, lints, build, unit tests, end-to-end tests, torture.
    Test,
    /// Figures: printed, and written to target/bench.
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Faults under load.
    Torture {
        #[command(subcommand)]
        what: Torture,
    },
    /// Fuzzers, on the nightly compiler: each target for some minutes, see fuzz/README.md.
    Fuzz {
        /// Which target; without, all.
        target: Option<String>,
        /// How long each.
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// Put what was found into the committed corpora, minimised.
        #[arg(long)]
        keep: bool,
    },
    /// What outside judges say: each test of a fixed list passes, or it failed; a skip counts as a failure.
    Conformance {
        /// Which judge.
        suite: conformance::Suite,
        #[command(flatten)]
        options: conformance::Options,
    },
    /// Make the small guest image from Debian's packages.
    GuestImage {
        /// Where to put it.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Make the kernel that guests boot on this host's KVM, and say what tests are told of it.
    KvmLinux,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// The daemon at rest and under requests.
    Api,
    /// Volumes, in the clear and encrypted, beside their files and `qemu-storage-daemon`; snapshots and clones.
    Disk,
    /// The embedded monitor beside others: Firecracker, Cloud Hypervisor and QEMU, where they are found or named by
    /// `FIRECRACKER`, `CLOUD_HYPERVISOR` and `QEMU`.
    Vmm {
        /// These figures only: start, memory, linux, block.
        groups: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
enum Torture {
    /// Kill the daemon under load of writes: nothing acknowledged is lost, no guest and no packet notices.
    Daemon {
        /// How often.
        #[arg(long, default_value_t = 20)]
        kills: u32,
    },
    /// Kill a disk's process under verified writes: no block is wrong.
    Disk {
        /// How often; without, as often as CI does.
        #[arg(long)]
        kills: Option<u32>,
    },
}

fn main() -> ExitCode {
    let steps = Steps::default();
    let result = match Arguments::parse().command {
        Command::Demo { once } => demo::run(once, &steps),
        Command::Test => test::run(&steps),
        Command::Bench { what: Bench::Api } => test::needs(&steps).and_then(|()| bench::api(&steps)),
        Command::Bench { what: Bench::Disk } => bench::disk(&steps),
        Command::Bench {
            what: Bench::Vmm { groups },
        } => bench::vmm(&groups, &steps),
        Command::Torture { what } => test::needs(&steps).and_then(|()| match what {
            Torture::Daemon { kills } => {
                test::binary_and_image(&steps).and_then(|()| torture::daemon(kills, &steps))
            }
            Torture::Disk { kills } => torture::disk(kills, &steps),
        }),
        Command::Fuzz {
            target,
            minutes,
            keep,
        } => fuzz::run(target.as_deref(), minutes, keep, &steps),
        Command::Conformance { suite, options } => conformance::run(suite, &options, &steps),
        Command::GuestImage { out } => {
            let out = out.unwrap_or_else(guest_image::default_path);
            guest_image::build(&out, &steps).map(|()| println!("{}", out.display()))
        }
        Command::KvmLinux => kvm_linux::prepare(&steps).map(|environment| {
            for (name, value) in environment {
                println!("export {name}='{}'", value.display());
            }
        }),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
