//! The console.

use super::ring::{memory, offer, started};
use super::{Input, plant};
use crate::console::{Console, MAX_INPUT, Outlet, Progress, QUEUE_SIZE, RECEIVE, TRANSMIT};

/// The rings' descriptor tables.
const TABLES: [u64; 2] = [0x1000, 0x5000];
/// The most that one call prints: as much as it looks at the clock for, and one piece more.
const MOST: usize = (64 << 10) + 4096;

/// Takes so many bytes.
struct Paper {
    room: usize,
    printed: usize,
}

impl Outlet for Paper {
    fn room(&self) -> usize {
        self.room
    }

    fn put(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.room, "more than there is room for");
        self.room -= bytes.len();
        self.printed += bytes.len();
    }
}

/// Chains for both rings of the console, while somebody types, there is room at times, and the device stops and goes on, as its
/// own state says or another.
///
/// # Panics
/// If more is typed or printed than may be, or a driver keeps the thread.
pub fn console(data: &[u8]) {
    let memory = memory();
    let mut input = Input::new(data);
    let flags = input.u8();
    let rings = TABLES.map(|table| started(&memory, table, QUEUE_SIZE, flags & 1 != 0));
    let [Some(mut receive), Some(mut transmit)] = rings else {
        return;
    };
    let mut console = Console::default();
    let mut paper = Paper { room: 0, printed: 0 };
    while !input.is_empty() {
        let kind = input.u8();
        let which = if kind & 0x80 == 0 { RECEIVE } else { TRANSMIT };
        match kind % 12 {
            0 => plant(&mut input, &memory, TABLES[which]),
            1 | 2 => {
                for _ in 0..=input.u8() & 15 {
                    offer(&memory, TABLES[which], QUEUE_SIZE, input.u8().into());
                }
            }
            3 => {
                let text = vec![kind; input.number() as usize % (2 * MAX_INPUT)];
                let before = console.state().0.len();
                let typed = console.type_in(&text);
                assert_eq!(typed, text.len().min(MAX_INPUT - before));
            }
            4 | 5 => {
                let before = console.state().0.len();
                let result = console.receive(&mut receive, &memory);
                assert!(console.state().0.len() <= before);
                assert!(result.is_ok() || receive.broken());
            }
            6 | 7 => {
                paper.printed = 0;
                let result = console.transmit(&mut transmit, &memory, &mut paper);
                assert!(paper.printed <= MOST, "{}", paper.printed);
                assert!(result.is_ok() || transmit.broken());
                if matches!(result, Ok(Progress::Full)) {
                    assert_eq!(paper.room, 0);
                }
            }
            8 => paper.room = input.number() as usize % (256 << 10),
            9 => {
                // As over a pause; and, if the input likes, with a chain or a state of another's.
                let left = console.leave();
                let head = if kind & 0x40 == 0 {
                    left
                } else {
                    Some(input.number() as u16)
                };
                if let Some(head) = head
                    && console.take_up(&transmit, &memory, head).is_err()
                {
                    transmit.break_ring();
                }
            }
            10 => {
                console.leave();
                let (text, printed) = console.state();
                assert!(console.set_state(&text, printed));
                assert_eq!(console.state(), (text, printed));
                let length = input.number() as usize % (2 * MAX_INPUT);
                let taken = console.set_state(&vec![1; length], input.number() as u32);
                assert_eq!(taken, length <= MAX_INPUT);
            }
            _ => {
                // The driver begins anew.
                console.reset();
                let rings = TABLES.map(|table| started(&memory, table, QUEUE_SIZE, kind & 0x40 != 0));
                let [Some(first), Some(second)] = rings else {
                    return;
                };
                (receive, transmit) = (first, second);
            }
        }
    }
}
