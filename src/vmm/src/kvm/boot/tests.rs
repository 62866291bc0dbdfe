//! Kernels that are right, and kernels that lie.

use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::kvm::layout::{BOOT_PARAMS, KERNEL, PVH_INFO, PVH_MODULES};

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn kernel(image: &[u8], initrd: Option<&[u8]>, command_line: &str) -> Kernel {
    Kernel {
        image: file(image),
        initrd: initrd.map(file),
        command_line: command_line.into(),
    }
}

/// An ELF with one segment at `place` and a PVH note.
pub(super) fn elf(place: u64, code: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 64 + 2 * 56];
    out[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(24, &place.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &2u16.to_le_bytes());
    let (note, text) = (64 + 2 * 56u64, 64 + 2 * 56 + 20);
    // PT_NOTE
    put(64, &4u32.to_le_bytes());
    put(64 + 8, &note.to_le_bytes());
    put(64 + 32, &20u64.to_le_bytes());
    // PT_LOAD
    put(120, &1u32.to_le_bytes());
    put(120 + 8, &(text as u64).to_le_bytes());
    put(120 + 24, &place.to_le_bytes());
    put(120 + 32, &(code.len() as u64).to_le_bytes());
    put(120 + 40, &(code.len() as u64 + 100).to_le_bytes());
    for word in [4u32, 4, 18] {
        out.extend(word.to_le_bytes());
    }
    out.extend(b"Xen\0");
    out.extend((place as u32).to_le_bytes());
    out.extend(code);
    out
}

/// A bzImage with one set-up sector.
fn bzimage(code: &[u8], preferred: u64, needed: u32) -> Vec<u8> {
    let mut out = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &0x10_0000u32.to_le_bytes());
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x234, &[1]);
    put(0x238, &16u32.to_le_bytes());
    put(0x258, &preferred.to_le_bytes());
    put(0x260, &needed.to_le_bytes());
    out.extend(code);
    out
}

#[test]
fn a_pvh_kernel_is_told_its_memory_its_line_and_its_disk() {
    let ram = Ram::new(16, false).unwrap();
    let kernel = kernel(&elf(KERNEL, b"code"), Some(&[7; 5000]), "quiet");
    let start = load(&ram, &kernel, Some(0xe_0000)).unwrap();
    assert_eq!(start, Start::Pvh { entry: KERNEL as u32 });
    let memory = ram.memory();
    let word = |at| memory.read_obj::<u32>(GuestAddress(at)).unwrap();
    let long = |at| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
    assert_eq!((word(PVH_INFO), word(PVH_INFO + 12)), (0x336e_c578, 1));
    assert_eq!(long(PVH_INFO + 32), 0xe_0000);
    let line: [u8; 6] = memory.read_obj(GuestAddress(long(PVH_INFO + 24))).unwrap();
    assert_eq!(&line, b"quiet\0");
    let (disk, size) = (long(PVH_MODULES), long(PVH_MODULES + 8));
    assert_eq!((disk, size), ((16 << 20) - 8192, 5000));
    assert_eq!(memory.read_obj::<u8>(GuestAddress(disk + 4999)).unwrap(), 7);
    assert_eq!(
        &memory.read_obj::<[u8; 4]>(GuestAddress(KERNEL)).unwrap(),
        b"code"
    );
    let map = long(PVH_INFO + 40);
    for (index, entry) in (0u64..).zip(ram.map()) {
        assert_eq!(
            (long(map + index * 24), long(map + index * 24 + 8)),
            (entry.start, entry.size)
        );
    }
    assert_eq!(word(PVH_INFO + 48) as usize, ram.map().len());
}

#[test]
fn a_bzimage_is_told_the_same_in_its_own_words() {
    let ram = Ram::new(32, false).unwrap();
    let kernel = kernel(&bzimage(b"code", 16 << 20, 8 << 20), Some(&[7; 5000]), "quiet");
    let start = load(&ram, &kernel, Some(0xe_0000)).unwrap();
    assert_eq!(start, Start::Linux { entry: KERNEL as u32 });
    let memory = ram.memory();
    let word = |at| memory.read_obj::<u32>(GuestAddress(at)).unwrap();
    assert_eq!(
        &memory.read_obj::<[u8; 4]>(GuestAddress(KERNEL)).unwrap(),
        b"code"
    );
    assert_eq!(
        (word(BOOT_PARAMS + 0x218), word(BOOT_PARAMS + 0x21c)),
        ((32 << 20) - 8192, 5000)
    );
    assert_eq!(word(BOOT_PARAMS + 0x70), 0xe_0000);
    let line: [u8; 6] = memory
        .read_obj(GuestAddress(word(BOOT_PARAMS + 0x228).into()))
        .unwrap();
    assert_eq!(&line, b"quiet\0");
    let entries: u8 = memory.read_obj(GuestAddress(BOOT_PARAMS + 0x1e8)).unwrap();
    assert_eq!(usize::from(entries), ram.map().len());
}

#[test]
fn what_does_not_fit_is_refused() {
    let ram = Ram::new(4, false).unwrap();
    let refused = |kernel: &Kernel| load(&ram, kernel, None).unwrap_err();
    let room = |error: BootError| assert!(matches!(error, BootError::Room { .. }), "{error}");
    let large = vec![0; 3 << 20];
    room(refused(&kernel(&elf(KERNEL, b"code"), Some(&large), "")));
    room(refused(&kernel(&bzimage(b"code", KERNEL, 4 << 20), None, "")));
    room(refused(&kernel(
        &bzimage(b"code", u64::MAX - 5, u32::MAX),
        None,
        "",
    )));
    room(refused(&kernel(&bzimage(&large, KERNEL, 4096), None, "")));
    room(refused(&kernel(
        &bzimage(b"code", KERNEL, 2 << 20),
        Some(&large[..2 << 20]),
        "",
    )));
    for place in [4 << 20, (4 << 20) - 2, HOLE_ADDRESS, u64::MAX - 1] {
        refused(&kernel(&elf(place, b"code"), None, ""));
    }
    let line = |image: &[u8], line: &str| refused(&kernel(image, None, line));
    assert!(matches!(
        line(&bzimage(b"x", KERNEL, 4096), &"x".repeat(17)),
        BootError::CommandLine(17)
    ));
    assert!(matches!(
        line(&elf(KERNEL, b"x"), "a\0b"),
        BootError::CommandLine(3)
    ));
    assert!(matches!(
        line(&elf(KERNEL, b"x"), &"x".repeat(0x1_0000)),
        BootError::CommandLine(_)
    ));
}

const HOLE_ADDRESS: u64 = crate::kvm::layout::LOW_END;

#[test]
fn other_files_are_refused() {
    let ram = Ram::new(4, false).unwrap();
    let good = elf(KERNEL, b"code");
    let mut small = good.clone();
    small[4] = 1;
    let mut many = good.clone();
    many[56..58].copy_from_slice(&u16::MAX.to_le_bytes());
    let mut without_note = good.clone();
    without_note[64] = 0;
    let mut repeated = good.clone();
    repeated[64..120].copy_from_slice(&good[120..176]);
    repeated[120 + 8..120 + 16].copy_from_slice(&0u64.to_le_bytes());
    repeated[120 + 32..120 + 40].copy_from_slice(&(good.len() as u64 + 1).to_le_bytes());
    for image in [
        &b""[..],
        b"\x7fELF",
        b"#!/bin/sh\n",
        &[0; 4096],
        &good[..100],
        &small,
        &many,
        &without_note,
        &repeated,
    ] {
        load(&ram, &kernel(image, None, ""), None).unwrap_err();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever bytes of a good kernel are changed: it is loaded or refused.
    #[test]
    fn any_kernel_is_harmless(
        changes in prop::collection::vec((0usize..0x270, any::<u8>()), 1..8),
        big in any::<bool>(),
        cut in 0usize..2000,
    ) {
        let ram = Ram::new(4, false).unwrap();
        let mut image = if big { bzimage(b"code", KERNEL, 8192) } else { elf(KERNEL, &[0x90; 500]) };
        for (at, value) in changes {
            if let Some(byte) = image.get_mut(at) {
                *byte = value;
            }
        }
        image.truncate(image.len().saturating_sub(cut % image.len() / 4));
        let _ = load(&ram, &kernel(&image, Some(&[1; 4096]), "quiet"), None);
    }
}
