//! Runs benches; `cargo xtask bench` builds what they measure and calls this.

use std::path::PathBuf;

use allod_benches::vmm::Group;
use anyhow::Result;
use clap::{Parser, Subcommand};

/// Benches.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// The daemon at rest and under requests.
    Api,
    /// A list of many servers, with a program that has the simulated engine.
    ManyServers {
        /// The program.
        program: PathBuf,
    },
    /// Volumes, beside their files and another server of them.
    Disk,
    /// The embedded monitor beside others.
    Vmm {
        /// These figures only.
        groups: Vec<Group>,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().bench {
        Bench::Api => allod_benches::api::run(),
        Bench::ManyServers { program } => allod_benches::api::many_servers(program),
        Bench::Disk => allod_benches::disk::run(),
        Bench::Vmm { groups } => allod_benches::vmm::run(&groups),
    }
}
