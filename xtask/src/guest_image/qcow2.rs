//! A qcow2 writer (QEMU's docs/interop/qcow2.txt, version 3): one pass, no compression, zero clusters left out.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

const CLUSTER_BITS: u32 = 16;
/// "The refcount is exactly one": set in L1 and L2 entries.
const COPIED: u64 = 1 << 63;

/// Writes a raw disk as qcow2.
pub fn write(raw: &Path, out: &Path) -> Result<()> {
    let disk = fs::read(raw).with_context(|| format!("cannot read {}", raw.display()))?;
    let mut file = fs::File::create(out).with_context(|| format!("cannot write {}", out.display()))?;
    file.write_all(&encode(&disk, CLUSTER_BITS))?;
    file.sync_all()?;
    Ok(())
}

/// Clusters in order: header, refcount table, refcount blocks, L1, L2 tables, data.
fn encode(disk: &[u8], cluster_bits: u32) -> Vec<u8> {
    let size = 1usize << cluster_bits;
    let per_table = size / 8;
    let per_block = size / 2;
    let zeros = vec![0u8; size];
    let clusters: Vec<Option<&[u8]>> = disk
        .chunks(size)
        .map(|c| (*c != zeros[..c.len()]).then_some(c))
        .collect();
    let data = clusters.iter().flatten().count();
    let tables = clusters.len().div_ceil(per_table);
    let l1_clusters = (tables * 8).div_ceil(size).max(1);
    // Refcount blocks count themselves, too.
    let others = 2 + l1_clusters + tables + data;
    let mut blocks = 1;
    while blocks * per_block < others + blocks {
        blocks += 1;
    }
    assert!(
        blocks <= per_table,
        "one cluster of refcount table is enough for 128 GiB"
    );
    let l1_at = 2 + blocks;
    let l2_at = l1_at + l1_clusters;
    let data_at = l2_at + tables;
    let total = data_at + data;

    let at = |cluster: usize| (cluster * size) as u64;
    let mut out = Vec::with_capacity(total * size);
    out.extend_from_slice(b"QFI\xfb");
    put32(&mut out, &[3]);
    put64(&mut out, &[0]); // no backing file
    put32(&mut out, &[0, cluster_bits]);
    put64(&mut out, &[disk.len() as u64]);
    put32(&mut out, &[0, tables as u32]);
    put64(&mut out, &[at(l1_at), at(1)]);
    put32(&mut out, &[1, 0]); // refcount table clusters, snapshots
    put64(&mut out, &[0, 0, 0, 0]); // snapshots, incompatible, compatible, autoclear features
    put32(&mut out, &[4, 104]); // 16-bit refcounts, header length
    put64(&mut out, &[0]); // end of header extensions

    out.resize(size, 0);
    put64(&mut out, &(0..blocks).map(|i| at(2 + i)).collect::<Vec<_>>());
    out.resize(2 * size, 0);
    for _ in 0..total {
        out.extend_from_slice(&1u16.to_be_bytes());
    }
    out.resize(at(l1_at) as usize, 0);
    put64(
        &mut out,
        &(0..tables).map(|i| at(l2_at + i) | COPIED).collect::<Vec<_>>(),
    );
    out.resize(at(l2_at) as usize, 0);
    let mut next = data_at;
    for cluster in &clusters {
        let entry = cluster.map_or(0, |_| at(next) | COPIED);
        next += usize::from(cluster.is_some());
        put64(&mut out, &[entry]);
    }
    out.resize(at(data_at) as usize, 0);
    for cluster in clusters.into_iter().flatten() {
        out.extend_from_slice(cluster);
        out.resize(out.len().next_multiple_of(size), 0);
    }
    out
}

fn put32(out: &mut Vec<u8>, values: &[u32]) {
    out.extend(values.iter().flat_map(|v| v.to_be_bytes()));
}

fn put64(out: &mut Vec<u8>, values: &[u64]) {
    out.extend(values.iter().flat_map(|v| v.to_be_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    const BITS: u32 = 9;
    const CLUSTER: usize = 1 << BITS;

    fn get64(bytes: &[u8], at: usize) -> usize {
        usize::try_from(u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) & !COPIED).unwrap()
    }

    /// Reads back through the tables, as a reader of the format does.
    fn decode(image: &[u8]) -> Vec<u8> {
        let size = get64(image, 24);
        let l1 = get64(image, 40);
        let mut disk = Vec::new();
        for index in 0..size.div_ceil(CLUSTER) {
            let l2 = get64(image, l1 + index / (CLUSTER / 8) * 8);
            let cluster = get64(image, l2 + index % (CLUSTER / 8) * 8);
            if cluster == 0 {
                disk.resize(disk.len() + CLUSTER, 0);
            } else {
                disk.extend_from_slice(&image[cluster..cluster + CLUSTER]);
            }
        }
        disk.truncate(size);
        disk
    }

    #[test]
    fn what_was_written_is_read_back_and_holes_take_no_space() {
        let mut disk = vec![0u8; 3 * CLUSTER * (CLUSTER / 8) / 2];
        let last = disk.len() - 1;
        for at in [0, 5 * CLUSTER + 7, last] {
            disk[at] = 0xa5;
        }
        let image = encode(&disk, BITS);
        assert_eq!(decode(&image), disk);
        // Header, refcounts, block, L1, two L2 tables, three clusters of data.
        assert_eq!(image.len(), 9 * CLUSTER);
    }
}
