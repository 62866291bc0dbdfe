//! What the machine is called (SMBIOS 2.8, DMTF DSP0134): structures that firmware puts behind those about itself. `cloud-init`
//! and others know the cloud, and the server, by it.

use uuid::Uuid;

/// The maker, and the product by which cloud-init knows OpenStack (DataSourceOpenStack, `VALID_DMI_PRODUCT_NAMES`).
const MAKER: &str = "Allod";
const PRODUCT: &str = "OpenStack Compute";
const FAMILY: &str = "Virtual Machine";

/// Types of structures.
const SYSTEM: u8 = 1;
const ENCLOSURE: u8 = 3;
const END: u8 = 127;

/// The entry point and the structures. Firmware places them, counts its own with them, and sets the entry point's address
/// and checksums.
pub(super) fn tables(id: Uuid) -> (Vec<u8>, Vec<u8>) {
    let mut tables = Tables::default();
    let serial = id.to_string();
    // Maker, product, version, serial number, id, "wake-up by the power switch", SKU, family (§7.2).
    let mut system = vec![1, 2, 0, 3];
    // The first three fields are little-endian (§7.2.1).
    system.extend(id.to_bytes_le());
    system.extend([6, 0, 4]);
    tables.put(SYSTEM, 0x100, &system, &[MAKER, PRODUCT, &serial, FAMILY]);
    // Maker, "other" kind, no version, serial number and tag, thrice "safe", no security, OEM data, height, cords and
    // elements, no SKU (§7.4).
    let enclosure = [1, 1, 0, 0, 0, 3, 3, 3, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    tables.put(ENCLOSURE, 0x300, &enclosure, &[MAKER]);
    tables.put(END, 0x7f00, &[], &[]);
    (tables.entry(), tables.bytes)
}

#[derive(Default)]
struct Tables {
    bytes: Vec<u8>,
    count: u16,
    largest: usize,
}

impl Tables {
    /// Append a structure with its strings (§6.1).
    fn put(&mut self, kind: u8, handle: u16, body: &[u8], strings: &[&str]) {
        let start = self.bytes.len();
        self.bytes.extend([kind, body.len() as u8 + 4]);
        self.bytes.extend(handle.to_le_bytes());
        self.bytes.extend(body);
        for string in strings {
            self.bytes.extend(string.bytes());
            self.bytes.push(0);
        }
        if strings.is_empty() {
            self.bytes.push(0);
        }
        self.bytes.push(0);
        self.count += 1;
        self.largest = self.largest.max(self.bytes.len() - start);
    }

    /// The entry point (§5.2.1), as far as it is known before the structures are placed.
    fn entry(&self) -> Vec<u8> {
        let mut entry = b"_SM_".to_vec();
        // Checksum, length, version.
        entry.extend([0, 31, 2, 8]);
        entry.extend((self.largest as u16).to_le_bytes());
        entry.extend([0; 6]);
        entry.extend(b"_DMI_");
        entry.push(0);
        entry.extend((self.bytes.len() as u16).to_le_bytes());
        entry.extend([0; 4]);
        entry.extend(self.count.to_le_bytes());
        entry.push(0x28);
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_follow_each_other_to_the_end() {
        let id: Uuid = "00112233-4455-6677-8899-aabbccddeeff".parse().unwrap();
        let (entry, tables) = tables(id);
        assert_eq!(entry.len(), 31);
        assert_eq!(usize::from(entry[22]) | usize::from(entry[23]) << 8, tables.len());
        let mut rest = &tables[..];
        let mut found = Vec::new();
        while let [kind, length, ..] = *rest {
            let strings = &rest[length.into()..];
            let end = strings.windows(2).position(|pair| pair == [0, 0]).unwrap();
            let strings: Vec<_> = strings[..end]
                .split(|byte| *byte == 0)
                .map(|string| std::str::from_utf8(string).unwrap())
                .collect();
            found.push((kind, length));
            if kind == SYSTEM {
                assert_eq!(rest[8..16], [0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66]);
                assert_eq!(strings, [MAKER, PRODUCT, &id.to_string(), FAMILY]);
            }
            rest = &rest[usize::from(length) + end + 2..];
        }
        assert_eq!(found, [(SYSTEM, 27), (ENCLOSURE, 22), (END, 4)]);
        assert_eq!(entry[28], 3);
    }
}
