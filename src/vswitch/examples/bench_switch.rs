//! Packets per second through the pipeline on one core: two guests with security groups, 10,000 flows.
//!
//! `cargo run --release -p allod-vswitch --example bench_switch`

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use common::pure::{INSIDE, Pure, udp};
use common::{id, mac};
use vswitch::{Effects, Frame};

const FLOWS: u16 = 10_000;
const TIME: Duration = Duration::from_secs(2);

fn measure(name: &str, pure: &mut Pure, from: u128, frames: &[Vec<u8>]) {
    let place = pure.switch.port(id(from)).unwrap();
    let mut out = Effects::default();
    let mut round = |now: Duration| {
        let mut passed = 0;
        for frame in frames {
            pure.switch.input(place, Frame::new(frame.clone()), now, &mut out);
            passed += out.frames.len();
            out.frames.clear();
        }
        passed
    };
    // The first round makes the flows; it is not measured.
    let began = Instant::now();
    assert_eq!(round(Duration::from_secs(1)), frames.len(), "every packet passes");
    println!(
        "bench {name}_new_flows {:.0} flows/s",
        frames.len() as f64 / began.elapsed().as_secs_f64()
    );
    let began = Instant::now();
    let mut passed = 0;
    while began.elapsed() < TIME {
        passed += round(Duration::from_secs(1) + began.elapsed());
    }
    println!(
        "bench {name} {:.0} packets/s",
        passed as f64 / began.elapsed().as_secs_f64()
    );
}

fn main() {
    for (name, length) in [("switch_64", 18), ("switch_1500", 1472)] {
        let mut pure = Pure::two_tenants();
        let frames: Vec<_> = (0..FLOWS)
            .map(|n| {
                udp(
                    (mac(2), mac(1)),
                    ("10.0.0.11", "10.0.0.12"),
                    (1024 + n, 53),
                    &vec![0; length],
                )
            })
            .collect();
        measure(name, &mut pure, 1, &frames);
    }
    for (name, from, address) in [("snat_64", 2, "10.0.0.12"), ("floating_ip_64", 1, "10.0.0.11")] {
        let mut pure = Pure::two_tenants();
        pure.introduce_host();
        let frames: Vec<_> = (0..FLOWS)
            .map(|n| {
                udp(
                    (INSIDE, mac(from)),
                    (address, "203.0.113.1"),
                    (1024 + n, 53),
                    &[0; 18],
                )
            })
            .collect();
        measure(name, &mut pure, from.into(), &frames);
    }
}
