//! Saved states that another node sends: what was saved here, changed in places.
//!
//! Bytes that are taken for a text of JSON hardly ever are one, and if they are, no state: the search would be one of the parser. So the text
//! is made here, of a device that did something, and the bytes say what of it is otherwise.

use serde_json::{Value, json};
use virtio::fuzzing::Input;

use super::pci::{KINDS, heals, step};
use super::rig::Rig;
use crate::kvm::lifecycle::{Lifecycle, Saved};
use crate::kvm::virtio::worker::inline;

/// What a device does before it is saved.
const STEPS: u8 = 16;
/// Changes of one state.
const CHANGES: usize = 32;

/// The value at a place, counted through all that there is in it, and the number of places otherwise.
fn place<'a>(value: &'a mut Value, left: &mut usize) -> Option<&'a mut Value> {
    if *left == 0 {
        return Some(value);
    }
    *left -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| place(item, left)),
        Value::Object(fields) => fields.values_mut().find_map(|field| place(field, left)),
        _ => None,
    }
}

/// How many places there are.
fn places(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(places).sum(),
        Value::Object(fields) => fields.values().map(places).sum(),
        _ => 0,
    }
}

fn change(value: &mut Value, input: &mut Input<'_>) {
    let kind = input.u8();
    match (kind % 12, &mut *value) {
        (0, Value::Array(items)) => items.truncate(usize::from(input.u8())),
        (1, Value::Array(items)) => {
            if let Some(last) = items.last().cloned() {
                items.extend(std::iter::repeat_n(last, usize::from(input.u8() % 32)));
            }
        }
        (2, Value::Array(items)) => items.reverse(),
        (0 | 1, Value::Object(fields)) => {
            let at = usize::from(input.u8()) % fields.len().max(1);
            if let Some(name) = fields.keys().nth(at).cloned() {
                fields.remove(&name);
            }
        }
        (2, Value::Object(fields)) => {
            fields.insert("more".into(), json!(0));
        }
        (3, Value::Bool(is)) => *is = !*is,
        (3..8, _) => *value = json!(input.number()),
        (8, _) => *value = json!(-1),
        (9, _) => *value = Value::Null,
        (10, _) => *value = json!([]),
        _ => *value = json!("x".repeat(usize::from(input.u8()))),
    }
}

/// A device's state after some accesses, changed here and there, comes to another device of its kind, or of another.
///
/// # Panics
/// If a state that was taken on does not come back, or a reset does not heal it.
pub fn state(data: &[u8]) {
    inline::choose(true);
    let mut input = Input::new(data);
    let (from, to) = (input.u8(), input.u8());
    let kind = |byte: u8| KINDS[usize::from(byte) % KINDS.len()];
    let mut text = {
        let rig = Rig::new(0, &[kind(from), super::rig::Kind::Rng]);
        for _ in 0..input.u8() % STEPS {
            step(&rig, &mut input);
        }
        let device = &rig.functions[usize::from(from >> 7)];
        device.pause();
        let saved = device.save().ok();
        device.resume();
        heals(&rig, false);
        serde_json::to_value(saved).unwrap_or_default()
    };
    for _ in 0..CHANGES {
        if input.is_empty() {
            break;
        }
        let mut at = usize::from(input.u16()) % places(&text);
        if let Some(value) = place(&mut text, &mut at) {
            change(value, &mut input);
        }
    }
    if let Ok(saved) = serde_json::from_value::<Saved>(text) {
        // Mostly its own kind.
        let rig = Rig::new(0, &[kind(if to < 16 { to } else { from }), super::rig::Kind::Rng]);
        for device in &rig.functions {
            device.pause();
            if device.restore(&saved).is_ok() {
                assert!(device.save().is_ok());
                device.resume();
                inline::work();
                device.pause();
                let after = device.save();
                assert!(after.is_ok_and(|after| device.restore(&after).is_ok()));
            }
            device.resume();
        }
        heals(&rig, false);
    }
    inline::choose(false);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_of_a_state_is_found() {
        let mut value = json!({"a": [1, {"b": 2}], "c": null});
        assert_eq!(places(&value), 6);
        let found: Vec<_> = (0..7)
            .map(|at| place(&mut value, &mut { at }).map(|value| value.to_string()))
            .collect();
        assert_eq!(found[2].as_deref(), Some("1"));
        assert_eq!(found[4].as_deref(), Some("2"));
        assert_eq!(found[5].as_deref(), Some("null"));
        assert_eq!(found[6], None);
    }
}
