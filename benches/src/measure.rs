//! What the kernel tells of processes and disks.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// A process' proportional share of memory, in MiB.
pub fn pss_mib(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("Pss:"))
        .with_context(|| format!("no Pss in {path}"))?;
    let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib / 1024.0)
}

/// Processor time of a process so far, in seconds: its own clock (clock_getcpuclockid(3)), for ticks are too coarse for
/// what sleeps most of the time, and a sum over its threads forgets those that ended.
pub fn cpu_seconds(pid: i32) -> Result<f64> {
    let clock =
        clock_getcpuclockid(Pid::from_raw(pid)).with_context(|| format!("no clock of process {pid}"))?;
    Ok(Duration::from(clock_gettime(clock)?).as_secs_f64())
}

/// How often per second 4 KiB can be appended to a file in this folder and made durable.
pub fn fsyncs_per_second(folder: &Path, time: Duration) -> Result<f64> {
    let mut file = tempfile::tempfile_in(folder)?;
    let block = [0x5a; 4096];
    let sync = |file: &mut File| -> Result<()> {
        file.write_all(&block)?;
        file.sync_data()?;
        Ok(())
    };
    sync(&mut file)?;
    let began = Instant::now();
    let mut count = 0u32;
    while began.elapsed() < time {
        sync(&mut file)?;
        count += 1;
    }
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}

/// The middle of some measurements.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(vec![]).is_nan());
    }

    #[test]
    fn this_process_has_memory_and_uses_its_processor() {
        let me = std::process::id().cast_signed();
        assert!(pss_mib(me).unwrap() > 0.1);
        let before = cpu_seconds(me).unwrap();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(50) {
            std::hint::spin_loop();
        }
        let alone = cpu_seconds(me).unwrap();
        assert!(alone > before);
        // What a thread used stays counted when it has ended.
        let work = || {
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(50) {
                std::hint::spin_loop();
            }
        };
        std::thread::spawn(work).join().unwrap();
        assert!(cpu_seconds(me).unwrap() > alone + 0.005);
    }
}
