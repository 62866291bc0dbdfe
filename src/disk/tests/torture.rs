//! The torture in small: `examples/torture_disk.rs`.

use std::{path::PathBuf, process::Command};

fn torture(arguments: &[&str]) -> (bool, String) {
    // This test stands in `deps`, examples beside that.
    let test = std::env::current_exe().unwrap();
    let program: PathBuf = test
        .parent()
        .and_then(|deps| deps.parent())
        .unwrap()
        .join("examples/torture_disk");
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect("cargo build -p allod-disk --example torture_disk");
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[test]
fn two_hundred_deaths_leave_no_block_wrong() {
    for engine in [
        &["--kills", "200"][..],
        &["--kills", "50", "--threads", "--cached"],
        &["--kills", "100", "--encrypted"],
        &["--kills", "25", "--encrypted", "--threads", "--cached"],
        &["--kills", "50", "--limited"],
    ] {
        let (good, text) = torture(engine);
        assert!(good && text.contains(" 0 blocks wrong"), "{text}");
    }
}

#[test]
fn a_flipped_bit_is_found() {
    for volume in [
        &["--kills", "3", "--flip"][..],
        &["--kills", "3", "--flip", "--encrypted"],
    ] {
        let (good, text) = torture(volume);
        assert!(
            !good && text.contains("blocks wrong") && !text.contains(" 0 blocks wrong"),
            "{text}"
        );
    }
}

#[test]
fn without_the_record_of_requests_in_flight_the_torture_finds_fault() {
    let (good, text) = torture(&["--kills", "300", "--forgetful"]);
    assert!(!good, "{text}");
}
