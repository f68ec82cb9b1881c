use proptest::prelude::*;

use super::*;

#[test]
fn who_rested_longest_gives_way() {
    // Aim: at the bound a new key takes the place of the one that was used longest ago, and that is counted.
    let table: Table<u32> = Table::new(16 * 3);
    let key = |number: u128| number * 16;
    for number in 0..3 {
        table.with(key(number), |row| *row = 7);
    }
    table.with(key(0), |row| *row += 1);
    table.with(key(9), |row| assert_eq!(*row, 0));
    assert_eq!(table.peek(key(0), |row| *row), Some(8));
    assert_eq!(table.peek(key(1), |row| *row), None);
    assert_eq!(table.peek(key(2), |row| *row), Some(7));
    assert_eq!((table.len(), table.evicted()), (3, 1));
}

#[test]
fn a_table_holds_no_more_than_it_may() {
    // Aim: half a million keys leave a hundred thousand, and the newest is there.
    let table: Table<u8> = Table::new(OBJECT_KEYS_MAX);
    for number in 0..500_000_u128 {
        table.with(number.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835) >> 3, |row| *row = 1);
    }
    assert!(table.len() <= OBJECT_KEYS_MAX && table.len() > OBJECT_KEYS_MAX * 9 / 10, "{}", table.len());
    assert_eq!(table.evicted() as usize, 500_000 - table.len());
}

proptest! {
    /// Aim: a table does what a list of keys by their last use does.
    #[test]
    fn a_table_is_a_list_by_use(steps in prop::collection::vec((0..12_u128, any::<bool>()), 1..300)) {
        let table: Table<u64> = Table::new(16 * 5);
        let mut model: Vec<(u128, u64)> = Vec::new();
        for (step, (key, peeks)) in (0_u64..).zip(steps) {
            let key = key * 16;
            let place = model.iter().position(|(known, _)| *known == key);
            if peeks {
                prop_assert_eq!(table.peek(key, |row| *row), place.map(|place| model[place].1));
                continue;
            }
            let before = place.map(|place| model.remove(place).1).unwrap_or_default();
            model.truncate(if place.is_none() { model.len().min(4 + usize::from(model.len() < 5)) } else { model.len() });
            if place.is_none() && model.len() == 5 {
                model.pop();
            }
            model.insert(0, (key, step));
            prop_assert_eq!(table.with(key, |row| std::mem::replace(row, step)), before);
            let mut rows = Vec::new();
            table.each(|key, row| { rows.push((key, *row)); true });
            prop_assert_eq!(&rows, &model);
        }
    }
}
