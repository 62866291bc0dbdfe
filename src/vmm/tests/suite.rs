//! The conformance suite: a guest in C that judges the machine's devices as a driver sees them, and one that does what it
//! likes. Without a usable KVM every test says that it was skipped.

#[path = "suite/guest.rs"]
mod guest;
#[path = "suite/jailed.rs"]
mod jailed;
#[path = "probe/storage.rs"]
mod storage;
#[path = "suite/way.rs"]
mod way;

use std::time::{Duration, Instant};

use jailed::jailed;
use way::{In, LONG, Shape, Way, here, usable};

/// The suite, in a machine of this shape on this way. Its lines.
fn judge(way: Way, shape: Shape) -> Vec<String> {
    let machine = way(shape);
    let mut resized = false;
    let start = Instant::now();
    loop {
        let text = machine.text();
        if !resized && text.contains("resize me\n") {
            machine.resize("disk", (1 << 20) + 4096);
            resized = true;
        }
        if text.contains("\ndone ") && machine.ended() {
            return text.lines().map(str::to_owned).collect();
        }
        assert!(start.elapsed() < LONG && !machine.ended(), "{text}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// All lines are `ok`, and so many were expected at least.
fn all_ok(lines: &[String], least: usize) {
    println!("{}", lines.join("\n"));
    let not: Vec<_> = lines.iter().filter(|line| line.starts_with("not ok")).collect();
    assert!(not.is_empty(), "{not:?}");
    let ok = lines.iter().filter(|line| line.starts_with("ok ")).count();
    let skipped = lines.iter().filter(|line| line.starts_with("skip: ")).count();
    assert!(ok + skipped >= least, "{ok} of {least}");
    assert_eq!(lines.last().unwrap(), &format!("done {ok} 0"));
}

fn the_devices_are_as_the_standards_say(way: Way) {
    let Some(offer) = usable() else { return };
    let vcpus = if offer.starts_processors { 3 } else { 1 };
    let shape = Shape::new("suite resize");
    let lines = judge(way, Shape { vcpus, ..shape });
    all_ok(&lines, 18);
    let skipped = lines.iter().filter(|line| line.starts_with("skip: ")).count();
    // What needs processors.
    assert_eq!(skipped, if offer.starts_processors { 0 } else { 2 });
}

#[test]
fn a_driver_finds_the_devices_as_the_standards_say() {
    the_devices_are_as_the_standards_say(here);
}

#[test]
fn a_driver_in_a_jailed_machine_finds_them_so_too() {
    the_devices_are_as_the_standards_say(jailed);
}

/// The figures of a bench's line, by name.
fn figures(machine: &dyn In, name: &str) -> std::collections::BTreeMap<String, u64> {
    let start = Instant::now();
    while !machine.ended() {
        assert!(start.elapsed() < LONG, "{}", machine.text());
        std::thread::sleep(Duration::from_millis(5));
    }
    let text = machine.text();
    println!("{text}");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let words: Vec<_> = line
        .unwrap_or_else(|| panic!("{text}"))
        .split_whitespace()
        .collect();
    words
        .chunks(2)
        .map(|pair| (pair[0].to_owned(), pair[1].parse().unwrap()))
        .collect()
}

#[test]
fn a_bench_in_ring_3_counts_its_requests() {
    if usable().is_none() {
        return;
    }
    for (command, name, count, bytes) in [
        ("iops 16 3000", "iops", 3000, 4096),
        ("mbps 4 40", "mbps", 40, 1 << 20),
    ] {
        let machine = here(Shape {
            memory_mib: 48,
            disk_bytes: 4 << 20,
            ..Shape::new(command)
        });
        let figures = figures(&*machine, name);
        assert_eq!(
            (figures["requests"], figures["errors"], figures["bytes"]),
            (count, 0, bytes)
        );
        let rate = count as f64 * figures["khz"] as f64 * 1000.0 / figures["cycles"] as f64;
        println!(
            "{name}: {rate:.0} requests/s, {:.1} MiB/s, {} bells",
            rate * bytes as f64 / 1048576.0,
            figures["bells"]
        );
        let status = machine.disk("disk").unwrap();
        assert_eq!(
            (status.reads, status.read_bytes),
            (count, count * bytes),
            "the device counts otherwise"
        );
    }
    let machine = here(Shape {
        memory_mib: 48,
        ..Shape::new("bell 2000")
    });
    let figures = figures(&*machine, "bell");
    println!("bell: {} cycles each", figures["cycles"] / figures["requests"]);
}

/// A hostile guest, and beside it one that must not notice.
fn a_hostile_guest_hurts_nobody(way: Way) {
    if usable().is_none() {
        return;
    }
    let beside = here(Shape::new("suite"));
    for seed in [1, 2] {
        let machine = way(Shape::new(&format!("hostile {seed} 12000")));
        let start = Instant::now();
        // It is paused and goes on in the midst of it.
        let mut pauses = 0;
        while !machine.ended() {
            assert!(start.elapsed() < LONG, "{}", machine.text());
            machine.pause_and_resume();
            pauses += 1;
            std::thread::sleep(Duration::from_millis(50));
        }
        let text = machine.text();
        println!("seed {seed}, {pauses} pauses: {text}");
        // Each driver that sets the device up by the rules is served, whatever was before.
        assert!(
            text.starts_with("hostile 12000 broke ") && text.ends_with(" refused 0\n"),
            "{text}"
        );
    }
    // One that sends itself messages of all kinds may end itself; it obeys.
    let machine = way(Shape::new("hostile 3 100000000 wild"));
    std::thread::sleep(Duration::from_millis(300));
    machine.reset();
    std::thread::sleep(Duration::from_millis(300));
    machine.stop();
    assert!(machine.ended());

    let start = Instant::now();
    while !beside.ended() {
        assert!(start.elapsed() < LONG, "{}", beside.text());
        std::thread::sleep(Duration::from_millis(5));
    }
    let lines: Vec<_> = beside.text().lines().map(str::to_owned).collect();
    all_ok(&lines, 17);
}

#[test]
fn a_hostile_guest_hurts_nobody_but_itself() {
    a_hostile_guest_hurts_nobody(here);
}

#[test]
fn a_hostile_guest_in_a_jail_hurts_nobody_either() {
    a_hostile_guest_hurts_nobody(jailed);
}
