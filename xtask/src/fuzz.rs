//! `cargo xtask fuzz`: each target for a while, with what the nightly compiler and cargo-fuzz make of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use allod_tests::paths;
use allod_tests::progress::Steps;
use allod_tests::run::{exists, finish, line};
use anyhow::{Context, Result, bail, ensure};

use crate::build;

/// A target is done when it found no new edge for so long,
const QUIET: Duration = Duration::from_secs(300);
/// having run for so long.
const LEAST: Duration = Duration::from_secs(600);
/// The longest input in bytes.
const MAX_LENGTH: u32 = 2048;
/// One input that takes so many seconds is a hang.
const TIMEOUT: u32 = 20;

/// How a target's run went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Run {
    inputs: u64,
    edges: u64,
    /// When the last new edge was found.
    last: Duration,
    length: Duration,
}

impl Run {
    fn is_done(&self) -> bool {
        self.length >= LEAST && self.length.saturating_sub(self.last) >= QUIET
    }

    /// Take in a line of libFuzzer's, as "#4096 pulse  cov: 293 ft: 328 corp: …".
    fn hear(&mut self, text: &str, at: Duration) {
        let Some(rest) = text.strip_prefix('#') else {
            return;
        };
        let mut words = rest.split_whitespace();
        let Some(inputs) = words.next().and_then(|word| word.parse().ok()) else {
            return;
        };
        let edges = words
            .skip_while(|word| *word != "cov:")
            .nth(1)
            .and_then(|word| word.parse().ok());
        self.inputs = inputs;
        if let Some(edges) = edges.filter(|edges| *edges > self.edges) {
            self.edges = edges;
            self.last = at;
        }
    }
}

/// Run one target, or all, each for so many minutes. `keep`: what they found goes into the committed corpora, as few files
/// as lead everywhere.
pub fn run(target: Option<&str>, minutes: u64, keep: bool, steps: &Steps) -> Result<()> {
    needs(steps)?;
    let all = targets()?;
    let chosen: Vec<&String> = all
        .iter()
        .filter(|name| target.is_none_or(|target| target == *name))
        .collect();
    ensure!(
        !chosen.is_empty(),
        "no such target; there are: {}",
        all.join(", ")
    );
    let step = steps.start("build the targets");
    finish(fuzz().args(["build", "--fuzz-dir", "fuzz"]))?;
    step.done("");
    let (mut done, mut failures, mut inputs) = (0, Vec::new(), 0);
    for name in &chosen {
        match one(name, minutes, steps) {
            Ok(run) => {
                inputs += run.inputs;
                done += u32::from(run.is_done());
            }
            Err(error) => {
                println!("{name}: {error:#}");
                failures.push(name.as_str());
            }
        }
        if keep {
            merge(name, steps)?;
        }
    }
    println!(
        "fuzz: {} targets, {inputs} inputs, {done} done ({} minutes, the last {} without a new edge), {} with findings{}{}",
        chosen.len(),
        LEAST.as_secs() / 60,
        QUIET.as_secs() / 60,
        failures.len(),
        if failures.is_empty() { "" } else { ": " },
        failures.join(", ")
    );
    ensure!(failures.is_empty(), "the fuzzer found something");
    Ok(())
}

fn needs(steps: &Steps) -> Result<()> {
    if exists("cargo-fuzz") {
        return Ok(());
    }
    let step = steps.start("install cargo-fuzz");
    finish(build::cargo().args(["install", "cargo-fuzz", "--locked"]))?;
    step.done("");
    Ok(())
}

/// cargo-fuzz, on the nightly compiler, whose flags sanitizers need.
fn fuzz() -> std::process::Command {
    let mut command = std::process::Command::new("cargo");
    command
        .args(["+nightly", "fuzz"])
        .current_dir(paths::root())
        .stdin(Stdio::null())
        .env_remove("CARGO")
        .env_remove("RUSTUP_TOOLCHAIN")
        // Leaks are looked for by a tracer, which not every host allows; growth is found by the limit of memory. Short traces of
        // allocations and a short memory of freed ones make inputs cheaper.
        .env(
            "ASAN_OPTIONS",
            "detect_leaks=0:malloc_context_size=4:quarantine_size_mb=16",
        );
    command
}

fn targets() -> Result<Vec<String>> {
    let list = finish(fuzz().args(["list", "--fuzz-dir", "fuzz"]))?;
    Ok(list.lines().map(str::to_owned).collect())
}

/// Where a target's inputs are collected, and where those are that a clone has.
fn corpora(name: &str) -> (PathBuf, PathBuf) {
    let collected = paths::target().join("fuzz").join(name);
    (collected, paths::root().join("fuzz/corpus").join(name))
}

fn one(name: &str, minutes: u64, steps: &Steps) -> Result<Run> {
    let (collected, committed) = corpora(name);
    fs::create_dir_all(&collected)?;
    let step = steps.start(name);
    let start = Instant::now();
    let mut command = fuzz();
    command
        .args(["run", "--fuzz-dir", "fuzz", name])
        .args([&collected, &committed])
        .arg("--")
        .arg(format!("-max_total_time={}", minutes * 60))
        .arg(format!("-max_len={MAX_LENGTH}"))
        .arg(format!("-timeout={TIMEOUT}"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {}", line(&command)))?;
    let (mut run, mut said) = (Run::default(), Vec::new());
    if let Some(stream) = child.stderr.take() {
        for text in BufReader::new(stream).split(b'\n') {
            let text = String::from_utf8_lossy(&text?).into_owned();
            run.hear(&text, start.elapsed());
            step.at(
                start.elapsed().as_secs(),
                minutes * 60,
                &format!("{} edges", run.edges),
            );
            if !text.starts_with('#') {
                said.push(text);
            }
        }
    }
    run.length = start.elapsed();
    let status = child.wait()?;
    if !status.success() {
        let last = said.len().saturating_sub(40);
        bail!("{}\n{status}", said[last..].join("\n"));
    }
    step.done(&format!(
        "{} inputs, {} edges, the last after {} s{}",
        run.inputs,
        run.edges,
        run.last.as_secs(),
        if run.is_done() { ", done" } else { "" }
    ));
    Ok(run)
}

/// The fewest and smallest of all inputs that lead wherever one leads, in place of the committed ones.
fn merge(name: &str, steps: &Steps) -> Result<()> {
    let (collected, committed) = corpora(name);
    let step = steps.start(&format!("merge {name}"));
    let merged = paths::target().join("fuzz").join(format!("{name}.merged"));
    if merged.exists() {
        fs::remove_dir_all(&merged)?;
    }
    fs::create_dir_all(&merged)?;
    finish(
        fuzz()
            .args(["run", "--fuzz-dir", "fuzz", name])
            .args([&merged, &committed, &collected])
            .args(["--", "-merge=1"])
            // Edges alone: by how often each is passed, corpora are many times as large.
            .args(["-use_counters=0", &format!("-max_len={MAX_LENGTH}")]),
    )?;
    fs::remove_dir_all(&committed)?;
    fs::create_dir_all(&committed)?;
    let mut count = 0;
    for entry in fs::read_dir(&merged)? {
        let entry = entry?;
        fs::copy(entry.path(), committed.join(entry.file_name()))?;
        count += 1;
    }
    step.done(&format!("{count} files"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_and_inputs_are_read_from_libfuzzers_lines() {
        let mut run = Run::default();
        for (seconds, text) in [
            (1, "INFO: Running with entropic power schedule (0xFF, 100)."),
            (
                2,
                "#4096\tpulse  cov: 293 ft: 328 corp: 14/6026b lim: 1049 exec/s: 19",
            ),
            (
                3,
                "#5000\tREDUCE cov: 293 ft: 328 corp: 14/6026b lim: 1049 exec/s: 19",
            ),
            (
                4,
                "#5001\tNEW    cov: 294 ft: 330 corp: 15/6030b lim: 1049 exec/s: 19",
            ),
            (9, "#6000\tDONE   cov: 294 ft: 330 corp: 15/6030b"),
        ] {
            run.hear(text, Duration::from_secs(seconds));
        }
        let expected = Run {
            inputs: 6000,
            edges: 294,
            last: Duration::from_secs(4),
            length: Duration::ZERO,
        };
        assert_eq!(run, expected);
        for (length, done) in [(599, false), (600, true)] {
            run.length = Duration::from_secs(length);
            assert_eq!(run.is_done(), done);
        }
        run.last = Duration::from_secs(301);
        assert!(!run.is_done());
    }
}
