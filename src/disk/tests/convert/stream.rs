//! A writer of stream-optimized VMDK images as other programs than QEMU make them: the grain directory at the end, found by a
//! footer (VMware, "Virtual Disk Format 5.0", "Stream-Optimized Compressed Sparse Extents").

use miniz_oxide::deflate::compress_to_vec_zlib;

const SECTOR: usize = 512;
const GRAIN: usize = 128 * SECTOR;

/// An image of this disk, whose length is a multiple of 512.
pub(crate) fn stream_optimized(disk: &[u8]) -> Vec<u8> {
    let sectors = disk.len() / SECTOR;
    let mut image = header(sectors, u64::MAX);
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n\
         RW {sectors} SPARSE \"disk.vmdk\"\nddb.adapterType = \"lsilogic\"\n"
    );
    image.extend_from_slice(text.as_bytes());
    image.resize(128 * SECTOR, 0);
    let mut directory = Vec::new();
    for (number, reach) in (0..).zip(disk.chunks(512 * GRAIN)) {
        let mut table = Vec::new();
        for (index, grain) in (0..).zip(reach.chunks(GRAIN)) {
            if grain.iter().all(|byte| *byte == 0) {
                table.push(0);
                continue;
            }
            table.push(image.len() / SECTOR);
            let mut whole = grain.to_vec();
            whole.resize(GRAIN, 0);
            let packed = compress_to_vec_zlib(&whole, 6);
            let lba = u64::try_from((number * 512 + index) * 128).unwrap();
            image.extend_from_slice(&lba.to_le_bytes());
            image.extend_from_slice(&u32::try_from(packed.len()).unwrap().to_le_bytes());
            image.extend_from_slice(&packed);
            pad(&mut image);
        }
        table.resize(512, 0);
        if table.iter().all(|entry| *entry == 0) {
            directory.push(0);
            continue;
        }
        marker(&mut image, 4, 1);
        directory.push(image.len() / SECTOR);
        entries(&mut image, &table);
    }
    let bytes = (directory.len() * 4).div_ceil(SECTOR);
    marker(&mut image, bytes, 2);
    let place = image.len() / SECTOR;
    entries(&mut image, &directory);
    marker(&mut image, 1, 3);
    image.extend_from_slice(&header(sectors, u64::try_from(place).unwrap()));
    marker(&mut image, 0, 0);
    image
}

fn header(sectors: usize, directory: u64) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend_from_slice(b"KDMV");
    header.extend_from_slice(&3u32.to_le_bytes());
    header.extend_from_slice(&0x3_0001u32.to_le_bytes());
    for number in [u64::try_from(sectors).unwrap(), 128, 1, 20] {
        header.extend_from_slice(&number.to_le_bytes());
    }
    header.extend_from_slice(&512u32.to_le_bytes());
    for number in [0, directory, 128] {
        header.extend_from_slice(&number.to_le_bytes());
    }
    header.extend_from_slice(b"\0\n \r\n\x01\0");
    header.resize(SECTOR, 0);
    header
}

/// A sector that says what the next ones are.
fn marker(image: &mut Vec<u8>, sectors: usize, kind: u32) {
    image.extend_from_slice(&u64::try_from(sectors).unwrap().to_le_bytes());
    image.extend_from_slice(&0u32.to_le_bytes());
    image.extend_from_slice(&kind.to_le_bytes());
    pad(image);
}

fn entries(image: &mut Vec<u8>, entries: &[usize]) {
    for entry in entries {
        image.extend_from_slice(&u32::try_from(*entry).unwrap().to_le_bytes());
    }
    pad(image);
}

fn pad(image: &mut Vec<u8>) {
    image.resize(image.len().next_multiple_of(SECTOR), 0);
}
