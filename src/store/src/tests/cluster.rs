//! Several nodes in one process: the same code as a node on its own.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::ServerState;
use tempfile::TempDir;

use super::{STEPS, increment, value};
use crate::raft::{Node, NodeId, Raft, Reply, TransportError};
use crate::store::Layers;
use crate::{
    AppendRequest, AppendResponse, Error, Member, Options, SnapshotRequest, SnapshotResponse, Store,
    Transport, VoteRequest, VoteResponse,
};

const LONG: Duration = Duration::from_secs(20);

/// The wires between the nodes.
#[derive(Default)]
struct Wires {
    nodes: Mutex<BTreeMap<NodeId, Raft>>,
    cut: Mutex<HashSet<NodeId>>,
}

struct Wire {
    from: NodeId,
    wires: Arc<Wires>,
}

impl Wire {
    fn to(&self, target: NodeId) -> Result<Raft, TransportError> {
        let cut = self.wires.cut.lock().unwrap();
        let lost = || TransportError(format!("node {target} does not answer"));
        if cut.contains(&target) || cut.contains(&self.from) {
            return Err(lost());
        }
        self.wires
            .nodes
            .lock()
            .unwrap()
            .get(&target)
            .cloned()
            .ok_or_else(lost)
    }
}

fn told(error: impl std::fmt::Display) -> TransportError {
    TransportError(error.to_string())
}

impl Transport for Wire {
    fn append<'a>(
        &'a self,
        to: NodeId,
        _: &'a Node,
        request: AppendRequest,
        _: Duration,
    ) -> Reply<'a, AppendResponse> {
        Box::pin(async move { self.to(to)?.append_entries(request).await.map_err(told) })
    }
    fn vote<'a>(
        &'a self,
        to: NodeId,
        _: &'a Node,
        request: VoteRequest,
        _: Duration,
    ) -> Reply<'a, VoteResponse> {
        Box::pin(async move { self.to(to)?.vote(request).await.map_err(told) })
    }
    fn snapshot<'a>(
        &'a self,
        to: NodeId,
        _: &'a Node,
        request: SnapshotRequest,
        _: Duration,
    ) -> Reply<'a, SnapshotResponse> {
        Box::pin(async move { self.to(to)?.install_snapshot(request).await.map_err(told) })
    }
}

struct Cluster {
    wires: Arc<Wires>,
    stores: BTreeMap<NodeId, Store>,
    dirs: BTreeMap<NodeId, TempDir>,
    added: BTreeSet<NodeId>,
}

impl Cluster {
    async fn new(nodes: NodeId) -> Result<Cluster, Error> {
        let mut cluster = Cluster {
            wires: Arc::default(),
            stores: BTreeMap::new(),
            dirs: BTreeMap::new(),
            added: BTreeSet::new(),
        };
        for id in 1..=nodes {
            cluster.add(id).await?;
        }
        Ok(cluster)
    }

    async fn start(&mut self, id: NodeId) -> Result<(), Error> {
        let dir = self.dirs[&id].path();
        let options = Options {
            dir: dir.to_owned(),
            steps: STEPS,
            projections: Vec::new(),
        };
        let transport = Arc::new(Wire {
            from: id,
            wires: self.wires.clone(),
        });
        let member = Member {
            id,
            node: Node::new(id),
            transport,
            first: id == 1,
        };
        let store = Store::open_on(options, member, small(dir)?).await?;
        self.wires.nodes.lock().unwrap().insert(id, store.raft().clone());
        if self.stores.contains_key(&1) && !self.added.insert(id) {
            store.ready().await?;
        }
        self.stores.insert(id, store);
        Ok(())
    }

    /// Starts a node and makes it a member.
    async fn add(&mut self, id: NodeId) -> Result<(), Error> {
        self.dirs.insert(id, tempfile::tempdir().unwrap());
        self.start(id).await?;
        if id > 1 {
            let leader = self.leader().raft().clone();
            leader
                .add_learner(id, Node::new(id), true)
                .await
                .map_err(|e| Error::Other(e.to_string()))?;
            let members: BTreeSet<NodeId> = self.stores.keys().copied().collect();
            leader
                .change_membership(members, false)
                .await
                .map_err(|e| Error::Other(e.to_string()))?;
        }
        Ok(())
    }

    fn leader(&self) -> &Store {
        self.stores
            .values()
            .find(|store| store.leads())
            .expect("a leader")
    }

    /// Waits until every node has applied what the leader has.
    async fn settle(&self) -> u64 {
        let applied = self.leader().status().applied;
        for (id, store) in &self.stores {
            let reached = store
                .raft()
                .wait(Some(LONG))
                .applied_index_at_least(Some(applied), "settle")
                .await;
            assert!(reached.is_ok(), "node {id}: {reached:?}");
        }
        applied
    }

    async fn assert_equal(&self) -> Result<(), Error> {
        let mut hashes = Vec::new();
        for store in self.stores.values() {
            hashes.push(store.hashes().await?);
        }
        assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "{hashes:?}");
        Ok(())
    }
}

/// Small segments, and few entries behind a snapshot.
fn small(dir: &Path) -> Result<Layers, Error> {
    Ok(Layers {
        segment: 64 << 10,
        keep_entries: 2,
        ..Layers::system(dir)?
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_applies_the_same() -> Result<(), Error> {
    let cluster = Cluster::new(3).await?;
    let mut events = cluster.stores[&3].subscribe();
    for i in 0..50 {
        increment(cluster.leader(), &(i % 7).to_string()).await?;
    }
    cluster.settle().await;
    cluster.assert_equal().await?;
    assert_eq!(value(&cluster.stores[&2], "1").await?, 7);
    assert!(
        events.recv().await.unwrap().touches("counter"),
        "a follower has events, too"
    );

    let refused = increment(&cluster.stores[&2], "1").await;
    assert!(
        matches!(refused, Err(Error::NotLeader { leader: Some(1) })),
        "{refused:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_node_leads_when_the_leader_is_cut_off() -> Result<(), Error> {
    let cluster = Cluster::new(3).await?;
    for _ in 0..10 {
        increment(cluster.leader(), "a").await?;
    }
    cluster.wires.cut.lock().unwrap().insert(1);
    // A write that the old leader begins now reaches nobody.
    let old = cluster.stores[&1].clone();
    let orphan = tokio::spawn(async move { increment(&old, "a").await });
    let others = [&cluster.stores[&2], &cluster.stores[&3]];
    let wait = |store: &Store| {
        let raft = store.raft().clone();
        async move {
            raft.wait(Some(LONG))
                .state(ServerState::Leader, "a new leader")
                .await
                .map(drop)
        }
    };
    let elected = futures::future::select_ok([Box::pin(wait(others[0])), Box::pin(wait(others[1]))]).await;
    assert!(elected.is_ok());
    let leader = others.into_iter().find(|store| store.leads()).unwrap();
    assert_eq!(
        value(leader, "a").await.unwrap_or(-1).max(10),
        10,
        "nothing unacknowledged is there"
    );
    assert_eq!(
        increment(leader, "a").await?,
        11,
        "what was acknowledged is there"
    );

    cluster.wires.cut.lock().unwrap().clear();
    // The old leader learns of the new one; its own write is not acknowledged.
    let answer = tokio::time::timeout(LONG, orphan).await.unwrap().unwrap();
    assert!(
        matches!(answer, Err(Error::Unknown(_) | Error::NotLeader { .. })),
        "{answer:?}"
    );
    let applied = leader.status().applied;
    let back = cluster.stores[&1]
        .raft()
        .wait(Some(LONG))
        .applied_index_at_least(Some(applied), "back")
        .await;
    assert!(back.is_ok(), "{back:?}");
    cluster.assert_equal().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_joins_late_gets_a_snapshot() -> Result<(), Error> {
    let mut cluster = Cluster::new(1).await?;
    for i in 0..200 {
        increment(cluster.leader(), &format!("counter {i}")).await?;
    }
    let leader = cluster.leader().clone();
    leader.snapshot().await?;
    let purged = leader
        .raft()
        .wait(Some(LONG))
        .metrics(|m| m.purged.is_some_and(|id| id.index > 150), "purged")
        .await;
    assert!(purged.is_ok(), "{purged:?}");
    let entries = leader.status().log_entries;
    assert!(entries < 60, "{entries} entries are left in the log");

    cluster.add(2).await?;
    cluster.settle().await;
    cluster.assert_equal().await?;
    // It goes on from there, after a restart, too.
    increment(&leader, "counter 7").await?;
    cluster.settle().await;
    cluster.stores.remove(&2).unwrap().close().await?;
    cluster.start(2).await?;
    increment(&leader, "counter 7").await?;
    cluster.settle().await;
    cluster.assert_equal().await?;
    assert_eq!(value(&cluster.stores[&2], "counter 7").await?, 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_rows_differ_stops() -> Result<(), Error> {
    let cluster = Cluster::new(3).await?;
    increment(cluster.leader(), "a").await?;
    cluster.settle().await;
    // Somebody edits the database of node 3 behind its back.
    let vandal = rusqlite::Connection::open(cluster.dirs[&3].path().join("state.1.db"))?;
    vandal.execute("UPDATE counter SET value = 40", [])?;
    drop(vandal);
    assert_eq!(increment(cluster.leader(), "a").await?, 2);
    let third = cluster.stores[&3].raft();
    let stopped = third
        .wait(Some(LONG))
        .metrics(|m| m.running_state.is_err(), "stopped")
        .await;
    assert!(stopped.is_ok(), "{stopped:?}");
    let answer = increment(&cluster.stores[&3], "a").await;
    assert!(
        matches!(&answer, Err(Error::Diverged { reason, .. }) if reason.contains("counter")),
        "{answer:?}"
    );
    assert_eq!(increment(cluster.leader(), "a").await?, 3, "the others go on");
    Ok(())
}
