//! A program on the host that reads or writes a file, with io_uring and past the page cache.

use std::path::Path;
use std::process::Command;

use allod_tests::run::finish;
use anyhow::{Context, Result};
use serde_json::Value;

/// What it does.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    /// fio's word: `randread`, `write`, …
    pub pattern: &'static str,
    /// Bytes of a request.
    pub bytes: u64,
    /// Requests at a time.
    pub depth: u32,
    /// For how long.
    pub seconds: u64,
}

/// Requests per second.
///
/// # Errors
/// If fio is not there, fails, or says nothing of it.
pub fn rate(access: Access, file: &Path) -> Result<f64> {
    let mut command = Command::new("fio");
    command.args([
        "--name=host",
        "--ioengine=io_uring",
        "--direct=1",
        "--output-format=json",
    ]);
    command.args(["--time_based", "--norandommap", "--randrepeat=0", "--thread"]);
    command.arg(format!("--filename={}", file.display()));
    command.arg(format!("--rw={}", access.pattern));
    command.arg(format!("--bs={}", access.bytes));
    command.arg(format!("--iodepth={}", access.depth));
    command.arg(format!("--runtime={}", access.seconds));
    let said = finish(&mut command)?;
    let report: Value = serde_json::from_str(&said).context("fio's report")?;
    let way = if access.pattern.ends_with("read") {
        "read"
    } else {
        "write"
    };
    let rate = report["jobs"][0][way]["iops"].as_f64();
    rate.context("no rate in fio's report")
}
