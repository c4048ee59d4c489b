//! The chunker's tables are calculated in a faster way than in the published crate: they are to be the same, or every
//! backup made before would be stored a second time.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use rustic_cdc::{Polynom, Polynom64, Rabin64};

/// As rustic_cdc 0.3.1 defines them.
fn defined_tables(window_size: usize, polynom: Polynom64) -> ([Polynom64; 256], [Polynom64; 256]) {
    let (mut out_table, mut mod_table) = ([0; 256], [0; 256]);
    for byte in 0..256_usize {
        let mut hash = (byte as Polynom64).modulo(&polynom);
        for _ in 0..window_size - 1 {
            hash = (hash << 8).modulo(&polynom);
        }
        out_table[byte] = hash;
        let shifted = (byte as Polynom64) << polynom.degree();
        mod_table[byte] = shifted.modulo(&polynom) | shifted;
    }
    (out_table, mod_table)
}

#[test]
fn the_tables_are_those_of_their_definition() {
    // Irreducible polynomials of degree 53, as repositories have them: restic's example and rustic_cdc's default.
    for polynom in [0x003D_A335_8B4D_C173, 0x0025_B468_838D_CB75, 0x003A_1FF9_0F94_F4BF] {
        for window_size in [16, 64] {
            let (out_table, mod_table) = defined_tables(window_size, polynom);
            assert_eq!(Rabin64::calculate_out_table(window_size, &polynom), out_table);
            assert_eq!(Rabin64::calculate_mod_table(&polynom), mod_table);
        }
    }
}
