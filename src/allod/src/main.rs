//! A whole cloud in one binary: the command line, the configuration, and the wiring of all rooms.

mod catalogue;
mod config;
mod drivers;
mod machine;
mod notify;
mod serve;
mod state;
mod stop;
mod tls;
mod web;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::config::{Config, LogFormat};

/// glibc's allocator keeps what many threads freed: two hundred logins left more than a gibibyte behind.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A whole cloud in one binary.
#[derive(Debug, Parser)]
#[command(name = "allod", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the cloud: APIs, reconcilers, and the children that run guests and packets.
    Serve(ConfigFile),
    /// End everything on this node: guests, switch and daemon, with what they made on the host.
    Stop(ConfigFile),
    /// Run one machine of the embedded monitor on this terminal, without a cloud around it.
    Machine(machine::Arguments),
    /// Read the configuration and say whether it is right.
    CheckConfig(ConfigFile),
}

#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// The configuration; without it, every setting has its default.
    #[arg(long, short, env = "ALLOD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    fn load(&self) -> Result<Config> {
        Ok(match &self.config {
            Some(path) => Config::load(path)?,
            None => Config::default(),
        })
    }
}

fn main() -> ExitCode {
    // A child is started as `allod KIND`, before there is any thread; it takes its orders from its standard input.
    let mut arguments = std::env::args().skip(1);
    if let (Some(kind), None) = (arguments.next(), arguments.next())
        && let Some(ended) = drivers::children::child_main(&kind)
    {
        return ended;
    }
    let result = match Cli::parse().command {
        Command::Serve(file) => file.load().and_then(|config| {
            init_log(&config);
            serve::serve(config)
        }),
        Command::Stop(file) => file.load().and_then(|config| {
            init_log(&config);
            stop::stop(&config)
        }),
        Command::Machine(arguments) => machine::run(&arguments),
        Command::CheckConfig(file) => file.load().map(|_| println!("the configuration is right")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("allod: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Logs go to standard error.
fn init_log(config: &Config) {
    // Raft's own course is of interest only when something is wrong with it; directives that name it come later and win.
    let filter = tracing_subscriber::EnvFilter::new(format!("openraft=warn,{}", config.log.level));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
