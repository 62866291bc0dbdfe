//! What fuzzers and their replay call: each function takes any bytes, plays a hostile guest or frontend with them, and
//! returns. What it must not do is panic, hang, or grow. No part of the product.
//!
//! A new device gets a file here, a function in it, a target in `fuzz/`, and a line in [`TARGETS`].

mod balloon;
mod block;
mod console;
mod entropy;
mod frontend;
mod input;
mod plant;
mod ram;
mod ring;
mod vhost_user;
mod vsock;

pub use balloon::balloon;
pub use block::block;
pub use console::console;
pub use entropy::entropy;
pub use frontend::frontend;
pub use input::Input;
pub use plant::plant;
pub use ram::RamDisk;
pub use ring::{chain, ring};
pub use vhost_user::vhost_user;
pub use vsock::vsock;

/// Name and function of each.
pub const TARGETS: &[(&str, fn(&[u8]))] = &[
    ("chain", chain),
    ("ring", ring),
    ("block", block),
    ("entropy", entropy),
    ("balloon", balloon),
    ("console", console),
    ("vsock", vsock),
    ("vhost_user", vhost_user),
    ("frontend", frontend),
];

/// Call `target` with each file of the corpus `fuzz/corpus/NAME` of this workspace. How many there were.
///
/// # Panics
/// If a file cannot be read, or the target does.
pub fn replay(name: &str, target: fn(&[u8])) -> usize {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(name);
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.and_then(|entry| Ok((entry.path(), std::fs::read(entry.path())?)));
        let (path, data) = path.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        // Said first, so that a panic or a hang has a name.
        println!("{}", path.display());
        target(&data);
        count += 1;
    }
    count
}

/// Call `target` with so many rows of random bytes, always the same ones.
///
/// # Panics
/// If the target does.
pub fn shower(target: fn(&[u8]), rows: u32) {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    for row in 0..rows {
        let data: Vec<u8> = (0..row % 64 + 1).flat_map(|_| next()).collect();
        target(&data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_and_random_bytes_are_harmless() {
        for (name, target) in TARGETS {
            assert!(replay(name, *target) > 0, "{name} has no corpus");
            shower(*target, 300);
        }
    }
}
