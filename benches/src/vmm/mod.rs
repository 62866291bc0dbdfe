//! `cargo xtask bench vmm`: the embedded monitor beside others, turn by turn, on this host's KVM.

mod block;
mod guests;
mod linux;
mod memory;
mod monitors;
mod running;
mod start;

use allod_tests::kvm::Kvm;
use allod_tests::paths;
use anyhow::{Result, ensure};
use clap::ValueEnum;

use crate::figure::Figure;
use monitors::Kind;

/// A group of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// To a tiny guest's first byte.
    Start,
    /// The monitor's own memory.
    Memory,
    /// To Linux's first process.
    Linux,
    /// A guest's disk.
    Block,
}

/// These groups; none named: all.
pub fn run(groups: &[Group]) -> Result<()> {
    ensure!(Kvm::of_host().is_some(), "there is no /dev/kvm that we may open");
    // On the disk that is measured, not in memory.
    let target = paths::target().join("bench");
    std::fs::create_dir_all(&target)?;
    let folder = tempfile::tempdir_in(&target)?;
    let groups = if groups.is_empty() {
        Group::value_variants()
    } else {
        groups
    };
    for group in groups {
        match group {
            Group::Start => start::run(folder.path())?,
            Group::Memory => memory::run(folder.path())?,
            Group::Linux => linux::run(folder.path())?,
            Group::Block => block::run(folder.path())?,
        }
    }
    Ok(())
}

/// Each peer's figure, and ours beside the best of them, which is the least. Ours stands first.
fn versus_best(name: &str, kinds: &[Kind], values: &[f64], unit: &str) -> Result<()> {
    let mut best: Option<(Kind, f64)> = None;
    for (&kind, &value) in kinds.iter().zip(values).skip(1) {
        Figure::new(&format!("{name}.{kind}"), value, unit).report()?;
        if best.is_none_or(|(_, least)| value < least) {
            best = Some((kind, value));
        }
    }
    let mut ours = Figure::new(name, values[0], unit);
    if let Some((kind, value)) = best {
        ours = ours.versus(&kind.to_string(), value);
    }
    ours.report()
}
