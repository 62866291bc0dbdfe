use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use model::control::{MAX_MESSAGE, Reply, Request};
use proptest::prelude::*;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(20);

fn pair() -> (Connection, Connection) {
    let (a, b) = UnixStream::pair().unwrap();
    (Connection::new(a, TIMEOUT), Connection::new(b, TIMEOUT))
}

#[test]
fn a_descriptor_arrives_with_its_own_message() {
    let (a, mut b) = pair();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"volume").unwrap();
    a.send(&"first", &[]).unwrap();
    a.send(&"second", &[file.as_fd()]).unwrap();
    a.send(&"third", &[]).unwrap();

    assert_eq!(b.recv::<String>().unwrap().0, "first");
    let (text, mut descriptors) = b.recv::<String>().unwrap();
    assert_eq!(text, "second");
    assert_eq!(descriptors.len(), 1);
    let mut received = File::from(descriptors.remove(0));
    received.rewind().unwrap();
    let mut content = String::new();
    received.read_to_string(&mut content).unwrap();
    assert_eq!(content, "volume");
    let (text, descriptors) = b.recv::<String>().unwrap();
    assert_eq!((text.as_str(), descriptors.len()), ("third", 0));
}

#[test]
fn more_descriptors_than_allowed_are_refused_before_they_are_sent() {
    let (a, _b) = pair();
    let file = tempfile::tempfile().unwrap();
    let many = vec![file.as_fd(); MAX_DESCRIPTORS + 1];
    assert!(matches!(a.send(&0, &many), Err(Error::TooManyDescriptors)));
    a.send(&0, &many[1..]).unwrap();
}

#[test]
fn a_length_beyond_the_bound_is_refused_and_takes_no_memory() {
    let (mut a, b) = UnixStream::pair().unwrap();
    a.write_all(&u32::try_from(MAX_MESSAGE + 1).unwrap().to_le_bytes())
        .unwrap();
    let mut b = Connection::new(b, TIMEOUT);
    assert!(matches!(b.recv::<String>(), Err(Error::TooLarge(n)) if n == MAX_MESSAGE + 1));
}

#[test]
fn a_closed_connection_and_a_silent_one_are_told_apart() {
    let (a, mut b) = pair();
    b.set_timeout(Duration::from_millis(1));
    assert!(matches!(b.recv::<String>(), Err(Error::TimedOut(_))));
    drop(a);
    assert!(matches!(b.recv::<String>(), Err(Error::Closed)));
}

#[test]
fn a_server_answers_refuses_and_ends_while_a_broken_client_disturbs_nobody() {
    let folder = tempfile::tempdir().unwrap();
    // Longer than a socket address can hold.
    let deep = folder.path().join("d".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    let path = deep.join("control.sock");
    let listener = bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        serve(&listener, |number: i64, descriptors| match number {
            0 => (Ok(0), Next::End),
            n if n < 0 => (Err("negative".into()), Next::Continue),
            n => (
                Ok(n * 2 + i64::try_from(descriptors.len()).unwrap()),
                Next::Continue,
            ),
        })
    });
    let mut broken = listen::connect(&path).unwrap();
    broken.write_all(b"\x03\0\0\0}}}").unwrap();

    let mut client: Client<i64, i64> = Client::connect(&path, TIMEOUT).unwrap();
    assert_eq!(client.call(&21, &[]).unwrap(), 42);
    let file = tempfile::tempfile().unwrap();
    assert_eq!(client.call(&21, &[file.as_fd()]).unwrap(), 43);
    assert!(matches!(client.call(&-1, &[]), Err(Error::Refused(why)) if why == "negative"));
    let mut second: Client<i64, i64> = Client::connect(&path, TIMEOUT).unwrap();
    assert_eq!(second.call(&1, &[]).unwrap(), 2);
    assert_eq!(client.call(&0, &[]).unwrap(), 0);
    server.join().unwrap().unwrap();
    // The broken one was closed.
    assert_eq!(broken.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn a_reply_to_a_question_that_timed_out_is_skipped() {
    let (a, b) = UnixStream::pair().unwrap();
    let mut client: Client<u8, u8> = Client::new(Connection::new(a, Duration::from_millis(1)));
    assert!(matches!(client.call(&1, &[]), Err(Error::TimedOut(_))));
    let mut server = Connection::new(b, TIMEOUT);
    let (late, _): (Request<u8>, _) = server.recv().unwrap();
    client.set_timeout(TIMEOUT);
    server
        .send(
            &Reply {
                id: late.id,
                body: Ok(10),
            },
            &[],
        )
        .unwrap();
    server
        .send(
            &Reply {
                id: late.id + 1,
                body: Ok(20),
            },
            &[],
        )
        .unwrap();
    assert_eq!(client.call(&2, &[]).unwrap(), 20);
}

#[test]
fn a_channel_holds_a_large_reply_until_the_client_reads() {
    let (a, b) = UnixStream::pair().unwrap();
    let mut channel = Channel::new(a);
    let mut client = Connection::new(b, TIMEOUT);
    client.send(&Request { id: 7, body: 1u8 }, &[]).unwrap();
    let (request, _) = channel.read::<u8>().unwrap().unwrap();
    let large = "x".repeat(8 << 20);
    assert!(!channel.reply(request.id, Ok(&large)).unwrap());
    assert!(channel.wants_write());
    let reader = std::thread::spawn(move || client.recv::<Reply<String>>().unwrap().0);
    while !channel.flush().unwrap() {
        std::thread::yield_now();
    }
    let reply = reader.join().unwrap();
    assert_eq!((reply.id, reply.body.unwrap().len()), (7, 8 << 20));
}

proptest! {
    /// Whatever the pieces in which the bytes come, the same messages come out.
    #[test]
    fn pieces_of_any_size_make_the_same_messages(
        messages in prop::collection::vec(".{0,300}", 1..8),
        cuts in prop::collection::vec(1usize..64, 1..200),
    ) {
        let (mut a, b) = UnixStream::pair().unwrap();
        let stream: Vec<u8> = messages.iter().flat_map(|m| frame::encode(m).unwrap()).collect();
        let mut reader = Reader::default();
        let mut received = Vec::new();
        let mut rest = stream.as_slice();
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            a.write_all(piece).unwrap();
            rest = after;
            while let Some(frame) = reader.read(&b).unwrap() {
                received.push(frame.parse::<String>().unwrap().0);
            }
        }
        prop_assert_eq!(received, messages);
    }
}
