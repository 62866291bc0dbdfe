//! Encryption of a volume's sectors: AES-256 in XTS mode (IEEE 1619-2018, NIST SP 800-38E).
//!
//! A sector of 512 bytes is a data unit, and its number in the volume the tweak, so that reflinks keep their meaning: what two
//! files of a lineage share lies at the same place in both. **A sector of zeros in the file reads as zeros**: holes, and what was
//! discarded. (That a sector that was written comes out as 512 zeros is as likely as guessing 512 bytes.)
//!
//! XTS is written here over `aes`, which takes many blocks at once: crates that do a block after the other reach a fifth of
//! this speed, and less than a volume is to give.

use aes::Aes256;
use aes::cipher::generic_array::GenericArray;
use aes::cipher::{BlockDecrypt, BlockEncrypt, KeyInit};
use model::disk::DiskKey;
use uuid::Uuid;

/// Bytes of a data unit.
pub const UNIT: usize = 512;
/// Bytes of an AES block.
const BLOCK: usize = 16;
/// Blocks of a unit.
const BLOCKS: usize = UNIT / BLOCK;

type Block = aes::Block;

/// A volume's cipher. Its keys are wiped when it goes.
pub struct Cipher {
    lineage: Uuid,
    data: Aes256,
    tweak: Aes256,
}

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cipher")
            .field("lineage", &self.lineage)
            .finish_non_exhaustive()
    }
}

impl Cipher {
    /// The cipher of this key.
    pub fn new(key: &DiskKey) -> Self {
        Cipher {
            lineage: key.lineage,
            data: Aes256::new(GenericArray::from_slice(&key.data)),
            tweak: Aes256::new(GenericArray::from_slice(&key.tweak)),
        }
    }

    /// The lineage that the key is of.
    pub fn lineage(&self) -> Uuid {
        self.lineage
    }

    /// Encrypts whole sectors that lie at this byte of the volume. What is left beyond the last whole one stays as it is.
    pub fn seal(&self, offset: u64, bytes: &mut [u8]) {
        for (sector, unit) in (offset / UNIT as u64..).zip(bytes.chunks_exact_mut(UNIT)) {
            self.unit(sector, unit, |blocks| self.data.encrypt_blocks(blocks));
        }
    }

    /// Decrypts whole sectors that lie at this byte of the volume.
    pub fn open(&self, offset: u64, bytes: &mut [u8]) {
        for (sector, unit) in (offset / UNIT as u64..).zip(bytes.chunks_exact_mut(UNIT)) {
            if !is_zero(unit) {
                self.unit(sector, unit, |blocks| self.data.decrypt_blocks(blocks));
            }
        }
    }

    fn unit(&self, sector: u64, unit: &mut [u8], run: impl FnOnce(&mut [Block])) {
        let mut first = Block::default();
        first[..8].copy_from_slice(&sector.to_le_bytes());
        self.tweak.encrypt_block(&mut first);
        let mut tweak = u128::from_le_bytes(first.into());
        let mut tweaks = [0; BLOCKS];
        for slot in &mut tweaks {
            *slot = tweak;
            // Times x in GF(2^128), modulo x^128 + x^7 + x^2 + x + 1 (§5.2).
            tweak = (tweak << 1) ^ ((tweak >> 127) * 0x87);
        }
        let mut blocks = [Block::default(); BLOCKS];
        let masked = |bytes: &[u8], tweak: u128| {
            let mut block = [0; BLOCK];
            block.copy_from_slice(bytes);
            (u128::from_le_bytes(block) ^ tweak).to_le_bytes()
        };
        for ((block, bytes), tweak) in blocks.iter_mut().zip(unit.chunks_exact(BLOCK)).zip(tweaks) {
            *block = masked(bytes, tweak).into();
        }
        run(&mut blocks);
        for ((block, bytes), tweak) in blocks.iter().zip(unit.chunks_exact_mut(BLOCK)).zip(tweaks) {
            bytes.copy_from_slice(&masked(block, tweak));
        }
    }
}

/// All bytes are zeros.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<BLOCK>();
    // No early end within a piece: so it goes over many bytes at a time.
    let piece = |words: &[[u8; BLOCK]]| words.iter().fold(0, |or, word| or | u128::from_ne_bytes(*word)) == 0;
    words.chunks(BLOCKS).all(piece) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cipher(data: [u8; 32], tweak: [u8; 32]) -> Cipher {
        let lineage = Uuid::nil();
        Cipher::new(&DiskKey { lineage, data, tweak })
    }

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        let digits: Vec<_> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let pairs = digits
            .chunks_exact(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap());
        pairs.collect::<Vec<_>>().try_into().unwrap()
    }

    /// IEEE 1619-2018, annex B, vector 10: AES-256, sector 0xff, 512 bytes that count up.
    #[test]
    fn the_standards_vector_comes_out() {
        let cipher = cipher(
            bytes("2718281828459045235360287471352662497757247093699959574966967627"),
            bytes("3141592653589793238462643383279502884197169399375105820974944592"),
        );
        let plain: Vec<u8> = (0..512).map(|n| n as u8).collect();
        let mut text = plain.clone();
        cipher.seal(0xff * 512, &mut text);
        let expected: [u8; 64] = bytes(
            "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b
             5d31e276f8fe4a8d66b317f9ac683f44680a86ac35adfc3345befecb4bb188fd",
        );
        assert_eq!(text[..64], expected);
        let end: [u8; 16] = bytes("c4f36ffda9fcea70b9c6e693e148c151");
        assert_eq!(text[496..], end);
        cipher.open(0xff * 512, &mut text);
        assert_eq!(text, plain);
    }

    #[test]
    fn a_key_does_not_show_itself() {
        let key = DiskKey {
            lineage: Uuid::nil(),
            data: [0xab; 32],
            tweak: [0xcd; 32],
        };
        for said in [format!("{key:?}"), format!("{:?}", Cipher::new(&key))] {
            assert!(
                !said.contains("171") && !said.contains("205") && !said.contains("ab,"),
                "{said}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens_at_its_place_alone(
            sector in 0u64..1 << 55,
            units in 1usize..5,
            seed: [u8; 32],
        ) {
            let cipher = cipher(seed, [9; 32]);
            let plain: Vec<u8> = (0..units * UNIT).map(|n| (n * 7) as u8 ^ seed[n % 32]).collect();
            let mut text = plain.clone();
            cipher.seal(sector * 512, &mut text);
            let mut elsewhere = text.clone();
            // Sector by sector it is the same.
            for (n, unit) in text.clone().chunks(UNIT).enumerate() {
                let mut one = unit.to_vec();
                cipher.open((sector + n as u64) * 512, &mut one);
                prop_assert_eq!(&one[..], &plain[n * UNIT..(n + 1) * UNIT]);
            }
            cipher.open(sector * 512, &mut text);
            prop_assert_eq!(&text, &plain);
            cipher.open((sector + 1) * 512, &mut elsewhere);
            prop_assert_ne!(&elsewhere, &plain);
        }

        #[test]
        fn zeros_are_told(length in 0usize..2000, at in 0usize..2000) {
            let mut bytes = vec![0; length];
            prop_assert!(is_zero(&bytes));
            if let Some(byte) = bytes.get_mut(at) {
                *byte = 1;
                prop_assert!(!is_zero(&bytes));
            }
        }
    }
}
