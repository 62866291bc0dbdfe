//! The log alone: what is written is read back; torn ends are cut; damage is named.

use std::sync::Arc;

use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use openraft::{CommittedLeaderId, EntryPayload, LogId, Vote};
use proptest::prelude::*;

use super::journal::{Append, Journal, Recovered};
use super::{LogStore, entry};
use crate::command::Command;
use crate::error::Error;
use crate::log::File;
use crate::raft::{self, Entry};
use crate::tests::sim::{self, Folder, Image, SimDisk, World};

const SEGMENT: usize = 4096;

fn log_id(term: u64, index: u64) -> raft::LogId {
    LogId::new(CommittedLeaderId::new(term, 1), index)
}

fn make(term: u64, index: u64, size: usize) -> Entry {
    let bytes: Vec<u8> = (0..size).map(|i| (i as u64 ^ index ^ term) as u8).collect();
    Entry {
        log_id: log_id(term, index),
        payload: EntryPayload::Normal(Command::from_bytes(bytes)),
    }
}

fn open(machine: &sim::Machine) -> Result<(Journal, Recovered), Error> {
    Journal::open(Arc::new(SimDisk(machine.clone())), SEGMENT)
}

fn read(recovered: &Recovered) -> Vec<Entry> {
    recovered
        .entries
        .iter()
        .map(|(_, location)| entry::decode(&location.read().unwrap()).unwrap())
        .collect()
}

#[derive(Debug, Clone)]
enum Action {
    Append(Vec<usize>),
    Truncate(usize),
    Purge(usize),
    Vote(u64),
    Reopen,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        5 => prop::collection::vec(prop_oneof![4 => 0..300_usize, 1 => 1000..9000_usize], 1..6).prop_map(Action::Append),
        1 => (0..8_usize).prop_map(Action::Truncate),
        1 => (0..20_usize).prop_map(Action::Purge),
        1 => (1..9_u64).prop_map(Action::Vote),
        2 => Just(Action::Reopen),
    ]
}

/// Entry for entry, without openraft's own equality.
fn same(left: &[Entry], right: &[Entry]) -> bool {
    left.len() == right.len()
        && left
            .iter()
            .zip(right)
            .all(|(a, b)| entry::encode(a).unwrap() == entry::encode(b).unwrap())
}

proptest! {
    #[test]
    fn what_was_synced_is_there_after_a_restart(actions in prop::collection::vec(action(), 1..40)) {
        let machine = World::from(Image::default());
        let (mut journal, _) = open(&machine).unwrap();
        let (mut entries, mut vote, mut purged): (Vec<Entry>, Option<raft::Vote>, Option<raft::LogId>) = Default::default();
        let mut next = 1;
        for (term, action) in actions.into_iter().enumerate() {
            match action {
                Action::Append(sizes) => {
                    for size in sizes {
                        let new = make(term as u64, next, size);
                        next += 1;
                        journal.append(&Append::Entry(entry::encode(&new).unwrap())).unwrap();
                        entries.push(new);
                    }
                }
                Action::Truncate(count) => {
                    let keep = entries.len().saturating_sub(count);
                    if keep < entries.len() {
                        next = entries[keep].log_id.index;
                        journal.append(&Append::Truncate(next)).unwrap();
                        entries.truncate(keep);
                    }
                }
                Action::Purge(count) => {
                    if let Some(last) = entries.iter().take(count).next_back() {
                        purged = Some(last.log_id);
                        journal.append(&Append::Purged(last.log_id)).unwrap();
                        let gone = last.log_id.index;
                        entries.retain(|entry| entry.log_id.index > gone);
                    }
                }
                Action::Vote(term) => {
                    let new = Vote::new(term, 1);
                    vote = Some(new);
                    journal.append(&Append::Vote(new)).unwrap();
                }
                Action::Reopen => {
                    journal.sync().unwrap();
                    let live = entries.first().map(|entry| entry.log_id.index);
                    let (again, recovered) = open(&machine).unwrap();
                    journal = again;
                    prop_assert!(same(&read(&recovered), &entries));
                    prop_assert_eq!(recovered.vote, vote);
                    prop_assert_eq!(recovered.purged, purged);
                    let segment = recovered.entries.front().map(|(_, location)| location.segment);
                    prop_assert_eq!(segment.is_some(), live.is_some());
                    // Removing what holds no entry changes nothing.
                    journal.drop_segments(segment).unwrap();
                }
            }
        }
    }

    /// Groups are synced one by one; the last is cut or overwritten at any byte.
    #[test]
    fn a_torn_end_costs_only_what_was_not_synced(
        groups in prop::collection::vec(prop::collection::vec(0..200_usize, 1..4), 2..8),
        cut in 0.0..1.0_f64,
        garbage in any::<bool>(),
    ) {
        let machine = World::from(Image::default());
        let (mut journal, _) = Journal::open(Arc::new(SimDisk(machine.clone())), 1 << 16).unwrap();
        let (mut entries, mut synced, mut before) = (Vec::new(), 0, 0);
        for group in &groups {
            synced = entries.len();
            before = used(&machine).1;
            for &size in group {
                let new = make(1, entries.len() as u64 + 1, size);
                journal.append(&Append::Entry(entry::encode(&new).unwrap())).unwrap();
                entries.push(new);
            }
            journal.sync().unwrap();
        }
        let (file, end) = used(&machine);
        let at = before + ((end - before) as f64 * cut) as usize;
        file.write_at(&vec![if garbage { 0xa5 } else { 0 }; end - at], at as u64).unwrap();
        let (mut journal, recovered) = Journal::open(Arc::new(SimDisk(machine.clone())), 1 << 16).unwrap();
        let found = read(&recovered);
        prop_assert!(found.len() >= synced, "{} of {synced} synced entries", found.len());
        prop_assert!(same(&found, &entries[..found.len()]));
        // The log goes on where it was cut.
        let new = make(2, found.len() as u64 + 1, 50);
        journal.append(&Append::Entry(entry::encode(&new).unwrap())).unwrap();
        journal.sync().unwrap();
        let (_, recovered) = Journal::open(Arc::new(SimDisk(machine)), 1 << 16).unwrap();
        prop_assert!(same(&read(&recovered), &[&found[..], &[new]].concat()));
    }

    /// Any bit of any record flips, as a failing disk does it.
    #[test]
    fn a_flipped_bit_is_never_taken_for_data(
        groups in prop::collection::vec(prop::collection::vec(0..200_usize, 1..4), 2..8),
        place in 0.0..1.0_f64,
        bit in 0..8_u32,
    ) {
        let machine = World::from(Image::default());
        let (mut journal, _) = Journal::open(Arc::new(SimDisk(machine.clone())), 1 << 16).unwrap();
        let (mut entries, mut last_group) = (Vec::new(), 0);
        for group in &groups {
            last_group = entries.len();
            for &size in group {
                let new = make(1, entries.len() as u64 + 1, size);
                journal.append(&Append::Entry(entry::encode(&new).unwrap())).unwrap();
                entries.push(new);
            }
            journal.sync().unwrap();
        }
        let (file, end) = used(&machine);
        let at = (((end - 1) as f64) * place) as u64;
        let mut byte = [0];
        file.read_at(&mut byte, at).unwrap();
        file.write_at(&[byte[0] ^ (1 << bit)], at).unwrap();
        match Journal::open(Arc::new(SimDisk(machine)), 1 << 16) {
            Err(Error::Corrupt(_)) => {}
            Err(other) => prop_assert!(false, "{other}"),
            Ok((_, recovered)) => {
                // In the last group it cannot be told from a torn end. Before that it is always noticed.
                let found = read(&recovered);
                prop_assert!(found.len() >= last_group, "{} entries left, {last_group} had followers", found.len());
                prop_assert!(same(&found, &entries[..found.len()]));
            }
        }
    }
}

/// The active segment's file and the end of what is in use.
fn used(machine: &sim::Machine) -> (Arc<dyn File>, usize) {
    use crate::log::Disk;
    let disk = SimDisk(machine.clone());
    let name = disk
        .list()
        .unwrap()
        .into_iter()
        .filter(|name| name.ends_with(".log"))
        .max()
        .unwrap();
    let file = disk.open(&name).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    let scan = super::record::scan(&bytes, None);
    (file, scan.end)
}

#[test]
fn a_missing_segment_is_damage() {
    let machine = World::from(Image::default());
    let (mut journal, _) = open(&machine).unwrap();
    for index in 1..40 {
        journal
            .append(&Append::Entry(entry::encode(&make(1, index, 500)).unwrap()))
            .unwrap();
    }
    journal.sync().unwrap();
    assert!(sim::remove(&machine, Folder::Log, "0000000000000002.log"));
    assert!(matches!(open(&machine).map(drop), Err(Error::Corrupt(_))));
}

#[tokio::test]
async fn entries_that_left_the_memory_are_read_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(super::Directory::new(dir.path()).unwrap());
    let mut log = LogStore::open(disk, 1 << 20, ()).unwrap();
    let entries: Vec<Entry> = (0..60).map(|index| make(1, index, 200_000)).collect();
    for entry in &entries {
        log.blocking_append([entry.clone()]).await.unwrap();
    }
    let cached = super::lock(log.index.read())
        .slots
        .iter()
        .filter(|slot| slot.cached.is_some())
        .count();
    assert!(
        (1..30).contains(&cached),
        "{cached} entries of 200 kB are in memory"
    );
    assert!(same(&log.entries(0, u64::MAX).unwrap(), &entries));
    assert!(same(&log.entries(3, 7).unwrap(), &entries[3..7]));
    // Purging what a checkpoint has synced gives the disk back.
    let before = log.size();
    log.set_durable(50);
    log.purge(log_id(1, 50)).await.unwrap();
    log.save_vote(&Vote::new(2, 1)).await.unwrap();
    log.save_vote(&Vote::new(3, 1)).await.unwrap();
    assert!(
        log.size() < before / 2,
        "{} of {before} bytes are left",
        log.size()
    );
    assert!(same(&log.entries(0, u64::MAX).unwrap(), &entries[51..]));
}

#[tokio::test]
async fn nothing_is_purged_before_a_checkpoint_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(super::Directory::new(dir.path()).unwrap());
    let mut log = LogStore::open(disk.clone(), 1 << 16, ()).unwrap();
    let entries: Vec<Entry> = (0..20).map(|index| make(1, index, 20_000)).collect();
    log.blocking_append(entries.clone()).await.unwrap();
    log.set_durable(9);
    log.purge(log_id(1, 15)).await.unwrap();
    log.save_vote(&Vote::new(2, 1)).await.unwrap();
    // Raft does not see the entries any more, but a start after a power cut would.
    assert!(same(&log.entries(0, u64::MAX).unwrap(), &entries[16..]));
    let (_, recovered) = Journal::open(disk, 1 << 16).unwrap();
    assert!(same(&read(&recovered), &entries));
}
