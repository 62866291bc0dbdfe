//! What fuzzers and their replay call, as in [`virtio::fuzzing`]: any bytes, and no panic, no hang, no growth. No part of the
//! product.
//!
//! A new parser gets a function, a target in `fuzz/`, and a line in [`TARGETS`].

mod image;

pub use image::image;

/// Name and function of each.
pub const TARGETS: &[(&str, fn(&[u8]))] = &[("image", image)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_and_random_bytes_are_harmless() {
        for (name, target) in TARGETS {
            assert!(virtio::fuzzing::replay(name, *target) > 0, "{name} has no corpus");
            virtio::fuzzing::shower(*target, 300);
        }
    }
}
