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

/// The least of some measurements.
pub fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NAN, f64::min)
}

/// The most of some measurements.
pub fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NAN, f64::max)
}

/// A mapping of a process; sizes in KiB.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mapping {
    /// Where, how, and what.
    pub head: String,
    /// Its size.
    pub size: u64,
    /// What of it is in memory.
    pub rss: u64,
    /// The same, with what others map, too, divided among all.
    pub pss: u64,
    /// What was written, and is nobody else's.
    pub dirty: u64,
}

/// A process' mappings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Smaps(Vec<Mapping>);

impl Smaps {
    /// Of this process.
    pub fn of(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/smaps");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Ok(Self::parse(&text))
    }

    /// proc_pid_smaps(5).
    fn parse(text: &str) -> Self {
        let mut maps: Vec<Mapping> = Vec::new();
        for line in text.lines() {
            let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
            if !name.ends_with(':') {
                maps.push(Mapping {
                    head: line.to_owned(),
                    ..Mapping::default()
                });
            }
            let Some(map) = maps.last_mut() else { continue };
            let kib = || rest.trim().trim_end_matches(" kB").parse().unwrap_or(0);
            match name {
                "Size:" => map.size = kib(),
                "Rss:" => map.rss = kib(),
                "Pss:" => map.pss = kib(),
                "Private_Dirty:" => map.dirty = kib(),
                _ => {}
            }
        }
        Smaps(maps)
    }

    /// The guest's memory of this size in KiB: the smallest mapping that can hold it, for the system joins neighbours.
    pub fn guest(&self, kib: u64) -> Option<&Mapping> {
        let writable = |map: &&Mapping| {
            map.head
                .split(' ')
                .nth(1)
                .is_some_and(|rights| rights.starts_with("rw"))
        };
        let large = self.0.iter().filter(writable).filter(|map| map.size >= kib);
        large.min_by_key(|map| map.size)
    }

    /// All together.
    pub fn sum(&self, what: impl Fn(&Mapping) -> u64) -> u64 {
        self.0.iter().map(what).sum()
    }

    /// What takes memory, for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for map in self.0.iter().filter(|map| map.rss > 0) {
            text += &format!(
                "pss {:6} rss {:6} dirty {:6}  {}\n",
                map.pss, map.rss, map.dirty, map.head
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use nix::time::ClockId;

    use super::*;

    #[test]
    fn the_guests_memory_is_told_from_the_monitors() {
        let text = "1000-2000 r-xp 00000000 08:01 7 /monitor\nSize: 4 kB\nRss: 4 kB\nPss: 2 kB\nPrivate_Dirty: 0 kB\n\
                    3000-4000 rw-p 00000000 00:00 0 \nSize:  131080 kB\nRss: 12 kB\nPss: 12 kB\nPrivate_Dirty: 12 kB\n\
                    5000-6000 ---p 00000000 00:00 0 \nSize: 131072 kB\nRss: 0 kB\nPss: 0 kB\n\
                    7000-8000 rw-p 00000000 00:00 0 [heap]\nSize: 1048576 kB\nRss: 8 kB\nPss: 8 kB\nPrivate_Dirty: 8 kB\n\
                    VmFlags: rd wr mr\n";
        let maps = Smaps::parse(text);
        assert_eq!(maps.0.len(), 4);
        assert_eq!((maps.sum(|map| map.pss), maps.sum(|map| map.rss)), (22, 24));
        assert_eq!(maps.guest(131_072).unwrap().pss, 12);
        assert_eq!(maps.guest(1 << 21), None);
        assert!(maps.table().contains("[heap]"));
    }

    #[test]
    fn the_ends_are_the_least_and_the_most() {
        assert_eq!((least(&[3.0, 1.0, 2.0]), most(&[2.0, 3.0])), (1.0, 3.0));
        assert!(least(&[]).is_nan() && most(&[]).is_nan());
    }

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
        // By the thread's own clock: on a busy machine it may wait for most of the time.
        let work = || {
            let used = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
            let began = used();
            while used() - began < Duration::from_millis(20) {
                std::hint::spin_loop();
            }
        };
        work();
        let alone = cpu_seconds(me).unwrap();
        assert!(alone > before);
        // What a thread used stays counted when it has ended.
        std::thread::spawn(work).join().unwrap();
        assert!(cpu_seconds(me).unwrap() > alone + 0.005);
    }
}
