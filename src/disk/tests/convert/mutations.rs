//! Real images with bytes changed at random: converted or refused, and nothing panics, hangs or swells.

use std::sync::OnceLock;

use proptest::prelude::*;

use super::{stream::stream_optimized, *};

/// How a sample is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Qemu(ImageFormat, &'static str, &'static [&'static str]),
    Stream,
}

const KINDS: [Kind; 10] = [
    Kind::Qemu(ImageFormat::Qcow2, "qcow2", &["-o", "cluster_size=4k"]),
    Kind::Qemu(ImageFormat::Qcow2, "qcow2", &["-c", "-o", "cluster_size=4k"]),
    Kind::Qemu(ImageFormat::Vmdk, "vmdk", &["-o", "subformat=monolithicSparse"]),
    Kind::Qemu(ImageFormat::Vmdk, "vmdk", &["-o", "subformat=streamOptimized"]),
    Kind::Stream,
    Kind::Qemu(ImageFormat::Vhd, "vpc", &["-o", "subformat=dynamic"]),
    Kind::Qemu(ImageFormat::Vhd, "vpc", &["-o", "subformat=fixed"]),
    Kind::Qemu(
        ImageFormat::Vhdx,
        "vhdx",
        &["-o", "subformat=dynamic,log_size=1M,block_size=1M"],
    ),
    Kind::Qemu(
        ImageFormat::Vhdx,
        "vhdx",
        &["-o", "subformat=dynamic,log_size=1M,block_size=2M"],
    ),
    Kind::Qemu(
        ImageFormat::Vhdx,
        "vhdx",
        &["-o", "subformat=fixed,log_size=1M,block_size=1M"],
    ),
];

const LIMIT: u64 = 64 << 20;

/// An image, and where it has bytes that are not zero: there a change means something.
struct Sample {
    format: ImageFormat,
    bytes: Vec<u8>,
    hot: Vec<usize>,
}

fn sample(index: usize) -> &'static Sample {
    static SAMPLES: [OnceLock<Sample>; KINDS.len()] = [const { OnceLock::new() }; KINDS.len()];
    SAMPLES[index].get_or_init(|| {
        let bench = Bench::new();
        let text = "all work and no play ".repeat(12_000);
        fs::write(bench.path("text"), &text.as_bytes()[..250_880]).unwrap();
        let (format, bytes) = match KINDS[index] {
            Kind::Qemu(format, driver, options) => {
                let args = [
                    &["convert", "-q", "-f", "raw", "-O", driver],
                    options,
                    &["text", "image"],
                ];
                bench.qemu_img(&args.concat());
                (format, fs::read(bench.path("image")).unwrap())
            }
            Kind::Stream => (ImageFormat::Vmdk, stream_optimized(&text.as_bytes()[..250_880])),
        };
        // Text itself is of no interest but for a few bytes of it.
        let mut run = 0;
        let mut hot = Vec::new();
        for (at, byte) in bytes.iter().enumerate() {
            run = if *byte == 0 { 0 } else { run + 1 };
            if (1..64).contains(&run) {
                hot.push(at);
            }
        }
        Sample { format, bytes, hot }
    })
}

/// Right checksums, so that what is behind them is read.
fn mend(format: ImageFormat, bytes: &mut [u8]) {
    match format {
        ImageFormat::Vhdx => vhdx::mend(bytes),
        ImageFormat::Vhd => vhd::mend(bytes),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn mutations_are_harmless(
        index in 0..KINDS.len(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..10, any::<u8>()), 1..8),
        cut in proptest::option::weighted(0.1, any::<prop::sample::Index>()),
        mended in proptest::bool::weighted(0.8),
    ) {
        let Sample { format, bytes, hot } = sample(index);
        let mut bytes = bytes.clone();
        for (place, near, value) in changes {
            // Mostly at, or close behind, something; else anywhere in the first half mebibyte, or where the file ends.
            let at = match near {
                0..8 => hot[place.index(hot.len())] + near % 4,
                8 => place.index(512 << 10),
                _ => bytes.len() - 1 - place.index(2048.min(bytes.len())),
            };
            let at = at % bytes.len();
            bytes[at] = if value % 2 == 0 { value } else { bytes[at] ^ (1 << (value % 8)) };
        }
        if let Some(cut) = cut {
            bytes.truncate(1 + cut.index(bytes.len()));
        }
        if mended {
            mend(*format, &mut bytes);
        }
        let bench = Bench::new();
        let spec = ConvertSpec { format: *format, max_virtual_size: LIMIT, max_seconds: 20 };
        write_sparse(&bench.path("hostile"), &bytes);
        let result = bench.convert_with(&spec, &bench.path("hostile"));
        prop_assert!(!matches!(result, Err(ConvertError::TooSlow(_) | ConvertError::Io(_) | ConvertError::Full)), "{:?}", result);
        let written = fs::metadata(bench.path("output.raw")).unwrap();
        prop_assert!(written.len() <= LIMIT);
        if let Ok(converted) = result {
            prop_assert_eq!(written.len(), converted.virtual_size);
        }
        prop_assert!(peak_memory() < 512 << 20, "{}", peak_memory());
    }
}

#[test]
fn samples_are_whole() {
    let bench = Bench::new();
    for index in 0..KINDS.len() {
        let Sample { format, bytes, .. } = sample(index);
        let mut mended = bytes.clone();
        mend(*format, &mut mended);
        assert!(mended == *bytes, "{index}: checksums were right before");
        let converted = bench.hostile(bytes, *format).unwrap();
        assert!(
            converted.virtual_size >= 250_880 && converted.allocated == 256 << 10,
            "{index}"
        );
    }
}
