//! The drivers with real children: the switch, disks' owners and QEMU, each in its jail. Needs root, QEMU, nft, XFS tools.
//!
//! Children are this very binary, re-executed, so it has a `main` of its own, which understands as much of the
//! test harness's command line as runners use: `--list`, and the names of tests with `--exact`.

mod cases;
#[path = "../../src/drivers/mod.rs"]
#[allow(dead_code, unused_imports)]
mod drivers;
#[path = "../../../vmm/tests/suite/guest.rs"]
mod guest;
mod limits;

use std::process::ExitCode;

type Case = (&'static str, fn());

const CASES: &[Case] = &[
    (
        "a_switch_that_dies_is_replaced_and_told_all_again",
        cases::a_switch_that_dies_is_replaced_and_told_all_again,
    ),
    (
        "the_next_daemon_adopts_the_switch",
        cases::the_next_daemon_adopts_the_switch,
    ),
    (
        "a_guest_lives_through_the_death_of_all_others",
        cases::a_guest_lives_through_the_death_of_all_others,
    ),
    (
        "devices_come_and_go_while_a_guest_runs",
        cases::devices_come_and_go_while_a_guest_runs,
    ),
    (
        "a_guest_of_the_embedded_monitor_gets_what_its_limits_say",
        limits::a_guest_of_the_embedded_monitor_gets_what_its_limits_say,
    ),
    ("so_does_one_in_its_jail", limits::so_does_one_in_its_jail),
    (
        "a_guest_that_powers_off_is_cleared",
        cases::a_guest_that_powers_off_is_cleared,
    ),
    (
        "a_machine_that_cannot_be_adopted_keeps_no_daemon_from_its_start",
        cases::a_machine_that_cannot_be_adopted_keeps_no_daemon_from_its_start,
    ),
    (
        "a_node_of_threads_runs_a_guest",
        cases::a_node_of_threads_runs_a_guest,
    ),
    (
        "uploads_are_converted_or_refused",
        cases::uploads_are_converted_or_refused,
    ),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [kind] = arguments.as_slice()
        && let Some(ended) = drivers::children::child_main(kind)
    {
        return ended;
    }
    let has = |flag: &str| arguments.iter().any(|a| a == flag);
    let names: Vec<&String> = arguments
        .iter()
        .filter(|a| !a.starts_with('-') && *a != "terse")
        .collect();
    let chosen = CASES.iter().filter(|(name, _)| match names.as_slice() {
        [] => true,
        names if has("--exact") => names.iter().any(|n| *n == name),
        names => names.iter().any(|n| name.contains(n.as_str())),
    });
    if has("--list") {
        for (name, _) in chosen.filter(|_| !has("--ignored")) {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let mut count = 0;
    for (name, case) in chosen.filter(|_| !has("--ignored")) {
        println!("test {name} ...");
        case();
        count += 1;
    }
    println!("test result: ok. {count} passed");
    ExitCode::SUCCESS
}
