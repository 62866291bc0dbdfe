//! One connection between a port of the guest's and a stream of the host's: a pure state machine.
//!
//! It hears of packets and of the stream ([`Connection::hear`]) and tells what it wants: to say something to the guest
//! ([`Connection::say`]), to write to the stream ([`Connection::writes`]), to read from it ([`Connection::reads`]), to end it.
//!
//! ```text
//!   asked by the host:   Asked ── RESPONSE ──▶ Open      by the guest: Open, and RESPONSE is said
//!   Open:  RW, credit, SHUTDOWN in both directions, until
//!     the guest has shut down both and all that it sent is written   ─▶ RST is said, Over
//!     the stream breaks, or the guest breaks a rule                  ─▶ RST is said, Over
//!     the guest says RST                                             ─▶ Over
//! ```

use std::collections::VecDeque;

use super::packet::{Header, Operation, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// Bytes from the guest that wait for the stream: its credit (§5.10.6.3).
pub const BUFFER: u32 = 64 << 10;
/// The guest is told of room without being asked when so much has become free.
const TELL: u32 = BUFFER / 2;

/// What a connection hears.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A packet of the guest's, with its bytes.
    Packet(&'a Header, &'a [u8]),
    /// The stream took so many of the bytes that were to be written.
    Written(usize),
    /// The stream gave so many bytes, which are on their way to the guest.
    Read(u32),
    /// The stream will give no more.
    Ended,
    /// The stream is no more.
    Broken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The guest was asked, and has not answered.
    Asked,
    Open,
    Over,
}

/// What is to be said to the guest, in the order in which it is said.
#[derive(Debug, Clone, Copy, Default)]
struct Words {
    reset: bool,
    request: bool,
    response: bool,
    credit: bool,
    ask_credit: bool,
    shutdown: bool,
}

/// The connection.
#[derive(Debug)]
pub struct Connection {
    state: State,
    words: Words,
    /// What the guest says of its room, and what was sent to it.
    peer_alloc: u32,
    peer_forwarded: u32,
    sent: u32,
    /// It was asked for its room, and has said nothing since.
    asked_credit: bool,
    /// Bytes for the stream, of which the first are not the guest's.
    buffer: VecDeque<u8>,
    preface: usize,
    /// What the stream took, and what of it the guest knows.
    forwarded: u32,
    told: u32,
    /// What the guest has shut down.
    shut: u32,
    /// The stream gives no more.
    ended: bool,
}

impl Connection {
    fn new(state: State, words: Words) -> Self {
        Connection {
            state,
            words,
            peer_alloc: 0,
            peer_forwarded: 0,
            sent: 0,
            asked_credit: false,
            buffer: VecDeque::new(),
            preface: 0,
            forwarded: 0,
            told: 0,
            shut: 0,
            ended: false,
        }
    }

    /// The host asks. When the guest agrees, `preface` is the first that the stream gets.
    pub fn ask(preface: &[u8]) -> Self {
        let words = Words {
            request: true,
            ..Words::default()
        };
        let mut connection = Self::new(State::Asked, words);
        connection.buffer.extend(preface);
        connection.preface = preface.len();
        connection
    }

    /// The guest has asked with this packet, and there is a stream.
    pub fn answer(request: &Header) -> Self {
        let words = Words {
            response: true,
            ..Words::default()
        };
        let mut connection = Self::new(State::Open, words);
        connection.learn(request);
        connection
    }

    /// Bytes of the guest's that wait.
    fn held(&self) -> usize {
        self.buffer.len() - self.preface
    }

    fn learn(&mut self, header: &Header) {
        self.peer_alloc = header.buf_alloc;
        self.peer_forwarded = header.fwd_cnt;
        self.asked_credit = false;
        self.look_for_credit();
    }

    /// How many bytes the guest has room for. Its counters may lie; then it has none.
    fn credit(&self) -> u32 {
        let on_the_way = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_alloc.saturating_sub(on_the_way)
    }

    /// Ask once when there is none.
    fn look_for_credit(&mut self) {
        let wanted = self.state == State::Open && !self.ended && self.shut & SHUTDOWN_RECEIVE == 0;
        if wanted && self.credit() == 0 && !self.asked_credit {
            self.words.ask_credit = true;
            self.asked_credit = true;
        }
    }

    /// Something has happened.
    pub fn hear(&mut self, event: Event<'_>) {
        if self.state == State::Over {
            return;
        }
        match event {
            Event::Packet(header, bytes) => self.hear_packet(header, bytes),
            Event::Written(count) => {
                let count = count.min(self.buffer.len());
                self.buffer.drain(..count);
                let preface = count.min(self.preface);
                self.preface -= preface;
                // At most `BUFFER`.
                self.forwarded = self.forwarded.wrapping_add((count - preface) as u32);
                if self.forwarded.wrapping_sub(self.told) >= TELL {
                    self.words.credit = true;
                }
                if self.buffer.is_empty() {
                    // A connection that was busy once keeps no memory for that.
                    self.buffer = VecDeque::new();
                }
            }
            Event::Read(count) => {
                self.sent = self.sent.wrapping_add(count);
                self.look_for_credit();
            }
            Event::Ended => {
                if !std::mem::replace(&mut self.ended, true) {
                    self.words.shutdown = true;
                }
            }
            Event::Broken => self.reset(),
        }
        let over = self.state == State::Over;
        if !over && self.shut == SHUTDOWN_RECEIVE | SHUTDOWN_SEND && self.buffer.is_empty() {
            self.reset();
        }
    }

    fn hear_packet(&mut self, header: &Header, bytes: &[u8]) {
        self.learn(header);
        match (self.state, header.operation) {
            (_, Operation::Reset) => {
                self.state = State::Over;
                self.words = Words::default();
                self.buffer = VecDeque::new();
                self.preface = 0;
            }
            (State::Asked, Operation::Response) => {
                self.state = State::Open;
                self.look_for_credit();
            }
            (State::Open, Operation::Data) => {
                let room = BUFFER as usize - self.held();
                if bytes.len() > room || self.shut & SHUTDOWN_SEND != 0 {
                    self.reset();
                } else {
                    self.buffer.extend(bytes);
                }
            }
            (State::Open, Operation::Credit) => {}
            (State::Open, Operation::AskCredit) => self.words.credit = true,
            (State::Open, Operation::Shutdown) => {
                self.shut |= header.flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
            }
            _ => self.reset(),
        }
    }

    /// Nothing but RST is said any more.
    fn reset(&mut self) {
        self.words = Words {
            reset: true,
            ..Words::default()
        };
        self.buffer = VecDeque::new();
        self.preface = 0;
        self.shut = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;
    }

    /// There is something to say.
    pub fn has_words(&self) -> bool {
        let words = &self.words;
        words.reset || words.request || words.response || words.credit || words.ask_credit || words.shutdown
    }

    /// What to say to the guest now, with its flags. After a reset the connection is over.
    pub fn say(&mut self) -> Option<(Operation, u32)> {
        let words = &mut self.words;
        let said = |word: &mut bool| std::mem::take(word);
        if said(&mut words.reset) {
            self.state = State::Over;
            return Some((Operation::Reset, 0));
        }
        if said(&mut words.request) {
            return Some((Operation::Request, 0));
        }
        if said(&mut words.response) {
            return Some((Operation::Response, 0));
        }
        if said(&mut words.credit) {
            return Some((Operation::Credit, 0));
        }
        if said(&mut words.ask_credit) {
            return Some((Operation::AskCredit, 0));
        }
        said(&mut words.shutdown).then_some((Operation::Shutdown, SHUTDOWN_SEND))
    }

    /// The guest's room here, and what was taken out of it, for the header of whatever is sent to it now.
    pub fn tell(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (BUFFER, self.forwarded)
    }

    /// What is to be written to the stream: the front of it.
    pub fn writes(&self) -> &[u8] {
        if self.state == State::Open {
            self.buffer.as_slices().0
        } else {
            &[]
        }
    }

    /// How many bytes of the stream the guest would take.
    pub fn reads(&self) -> u32 {
        let open = self.state == State::Open && !self.ended && self.shut & SHUTDOWN_RECEIVE == 0;
        if open { self.credit() } else { 0 }
    }

    /// The guest sends no more, and all that it sent is written.
    pub fn is_written(&self) -> bool {
        self.state == State::Open && self.shut & SHUTDOWN_SEND != 0 && self.buffer.is_empty()
    }

    /// There is nothing more to do.
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::packet::STREAM;
    use super::*;

    fn packet(operation: Operation) -> Header {
        Header {
            src_cid: 3,
            dst_cid: 2,
            src_port: 1000,
            dst_port: 80,
            len: 0,
            kind: STREAM,
            operation,
            flags: 0,
            buf_alloc: 100,
            fwd_cnt: 0,
        }
    }

    fn says(connection: &mut Connection) -> Vec<Operation> {
        std::iter::from_fn(|| connection.say())
            .map(|(word, _)| word)
            .collect()
    }

    #[test]
    fn a_guest_that_asks_is_answered_and_gets_no_more_than_it_has_room_for() {
        let mut connection = Connection::answer(&packet(Operation::Request));
        assert_eq!(says(&mut connection), [Operation::Response]);
        assert_eq!(connection.reads(), 100);
        connection.hear(Event::Read(60));
        assert_eq!((connection.reads(), connection.has_words()), (40, false));
        connection.hear(Event::Read(40));
        assert_eq!(
            (connection.reads(), says(&mut connection)),
            (0, vec![Operation::AskCredit])
        );
        let mut credit = packet(Operation::Credit);
        credit.fwd_cnt = 70;
        connection.hear(Event::Packet(&credit, &[]));
        assert_eq!((connection.reads(), connection.has_words()), (70, false));
        credit.fwd_cnt = 101;
        connection.hear(Event::Packet(&credit, &[]));
        assert_eq!(connection.reads(), 0, "it cannot have taken what was not sent");
    }

    #[test]
    fn a_host_that_asks_is_told_and_the_word_is_not_the_guests() {
        let mut connection = Connection::ask(b"OK 5\n");
        assert_eq!(says(&mut connection), [Operation::Request]);
        assert!(connection.writes().is_empty() && connection.reads() == 0);
        connection.hear(Event::Packet(&packet(Operation::Response), &[]));
        assert_eq!((connection.writes(), connection.reads()), (&b"OK 5\n"[..], 100));
        connection.hear(Event::Packet(&packet(Operation::Data), b"hello"));
        connection.hear(Event::Written(7));
        assert_eq!(connection.writes(), b"llo");
        assert_eq!(connection.tell(), (BUFFER, 2));
        let mut refused = Connection::ask(b"OK 6\n");
        refused.hear(Event::Packet(&packet(Operation::Reset), &[]));
        assert!(refused.is_over() && refused.writes().is_empty());
    }

    #[test]
    fn each_direction_ends_by_itself_and_both_end_with_a_reset() {
        let mut connection = Connection::answer(&packet(Operation::Request));
        says(&mut connection);
        connection.hear(Event::Ended);
        connection.hear(Event::Ended);
        assert_eq!(connection.say(), Some((Operation::Shutdown, SHUTDOWN_SEND)));
        assert_eq!((connection.say(), connection.reads()), (None, 0));
        connection.hear(Event::Packet(&packet(Operation::Data), b"last words"));
        let mut shutdown = packet(Operation::Shutdown);
        shutdown.flags = SHUTDOWN_SEND;
        connection.hear(Event::Packet(&shutdown, &[]));
        assert!(!connection.is_written());
        connection.hear(Event::Written(10));
        assert!(connection.is_written() && !connection.has_words());
        shutdown.flags = SHUTDOWN_RECEIVE | 0xf0;
        connection.hear(Event::Packet(&shutdown, &[]));
        assert!(!connection.is_over());
        assert_eq!(says(&mut connection), [Operation::Reset]);
        assert!(connection.is_over());
    }

    #[test]
    fn who_breaks_the_rules_is_reset() {
        let open = || Connection::answer(&packet(Operation::Request));
        let mut flooded = open();
        flooded.hear(Event::Packet(&packet(Operation::Data), &vec![0; BUFFER as usize]));
        assert_eq!(says(&mut flooded), [Operation::Response]);
        flooded.hear(Event::Written(1));
        flooded.hear(Event::Packet(&packet(Operation::Data), &[0; 2]));
        assert_eq!(says(&mut flooded), [Operation::Reset]);
        for wrong in [Operation::Request, Operation::Response, Operation::Unknown(9)] {
            let mut connection = open();
            connection.hear(Event::Packet(&packet(wrong), &[]));
            assert_eq!(says(&mut connection), [Operation::Reset], "{wrong:?}");
        }
        let mut early = Connection::ask(b"");
        early.hear(Event::Packet(&packet(Operation::Data), b"x"));
        assert_eq!(says(&mut early), [Operation::Reset]);
    }

    #[test]
    fn room_is_told_before_the_guest_runs_out_of_it() {
        let mut connection = Connection::answer(&packet(Operation::Request));
        says(&mut connection);
        let (mut sent, mut alloc, mut known) = (0u32, BUFFER, 0u32);
        for _ in 0..100 {
            let free = (alloc - (sent - known)).min(5000);
            assert!(free > 0, "the guest waits for ever");
            connection.hear(Event::Packet(&packet(Operation::Data), &vec![0; free as usize]));
            sent += free;
            while !connection.writes().is_empty() {
                connection.hear(Event::Written(connection.writes().len()));
            }
            while let Some((word, _)) = connection.say() {
                assert_eq!(word, Operation::Credit);
                (alloc, known) = connection.tell();
            }
        }
        assert_eq!(connection.tell().1, sent);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Packet(u16, u32, u32, u32, usize),
        Written(usize),
        Read(u32),
        Ended,
        Broken,
        Say,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (prop_oneof![Just(5u16), Just(6), 0u16..9], 0u32..4, prop_oneof![0u32..300_000, any::<u32>()], prop_oneof![0u32..300_000, any::<u32>()], 0usize..70_000)
                .prop_map(|(op, flags, alloc, forwarded, bytes)| Step::Packet(op, flags, alloc, forwarded, bytes)),
            4 => (0usize..80_000).prop_map(Step::Written),
            4 => any::<u32>().prop_map(Step::Read),
            1 => Just(Step::Ended),
            1 => Just(Step::Broken),
            4 => Just(Step::Say),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: memory is bounded, the guest's bytes come out in order and once, it is sent no more
        /// than it has room for by its own word, nothing follows a reset, and the end stays the end.
        #[test]
        fn any_history_keeps_the_rules(asked in any::<bool>(), steps in prop::collection::vec(step(), 0..120)) {
            let mut connection = if asked { Connection::ask(b"OK 1\n") } else { Connection::answer(&packet(Operation::Request)) };
            let mut given = 0u64;
            let mut wanted: VecDeque<u8> = if asked { b"OK 1\n".iter().copied().collect() } else { VecDeque::new() };
            for step in steps {
                let was_over = connection.is_over();
                let was_resetting = connection.words.reset;
                match step {
                    Step::Packet(op, flags, alloc, forwarded, len) => {
                        let mut header = packet(op.into());
                        (header.flags, header.buf_alloc, header.fwd_cnt) = (flags, alloc, forwarded);
                        let bytes: Vec<u8> = (0..len as u64).map(|i| ((given + i) % 251) as u8).collect();
                        let before = connection.held();
                        connection.hear(Event::Packet(&header, &bytes));
                        if connection.held() > before {
                            given += len as u64;
                            wanted.extend(&bytes);
                        }
                    }
                    Step::Written(count) => {
                        let front = connection.writes().to_vec();
                        let count = count.min(front.len());
                        prop_assert_eq!(wanted.drain(..count).collect::<Vec<_>>(), &front[..count]);
                        connection.hear(Event::Written(count));
                    }
                    Step::Read(count) => {
                        let room = connection.reads();
                        prop_assert!(room <= connection.peer_alloc);
                        connection.hear(Event::Read(count.min(room)));
                        prop_assert_eq!(connection.reads(), room - count.min(room));
                    }
                    Step::Ended => connection.hear(Event::Ended),
                    Step::Broken => connection.hear(Event::Broken),
                    Step::Say => {
                        let word = connection.say();
                        if was_resetting {
                            prop_assert!(word == Some((Operation::Reset, 0)) && connection.is_over());
                        }
                    }
                }
                prop_assert!(connection.held() <= BUFFER as usize);
                prop_assert!(connection.buffer.len() <= BUFFER as usize + 5);
                prop_assert!(!was_over || connection.is_over());
                if connection.is_over() {
                    prop_assert!(!connection.has_words() && connection.writes().is_empty() && connection.reads() == 0);
                }
                // A connection is never stuck without anything that could move it.
                if connection.shut == 3 && !connection.is_over() {
                    prop_assert!(connection.has_words() || !connection.buffer.is_empty());
                }
            }
        }
    }
}
