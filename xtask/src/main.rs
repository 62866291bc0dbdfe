//! Developer commands: `cargo xtask COMMAND`.

mod build;
mod demo;
mod guest_image;

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
    /// Make the small guest image from Debian's packages.
    GuestImage {
        /// Where to put it.
        #[arg(long)]
        out: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let steps = Steps::default();
    let result = match Arguments::parse().command {
        Command::Demo { once } => demo::run(once, &steps),
        Command::GuestImage { out } => {
            let out = out.unwrap_or_else(guest_image::default_path);
            guest_image::build(&out, &steps).map(|()| println!("{}", out.display()))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
