//! The types that openraft is given, and the transport that carries its messages between nodes.
//!
//! `store` opens no socket: [`Transport`] is what `cluster` implements. A node on its own uses [`Solo`].

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use openraft::error::{InstallSnapshotError, RPCError, RaftError, Unreachable};
use openraft::network::RPCOption;
use openraft::{AnyError, RaftNetwork, RaftNetworkFactory};

use crate::command::{Command, Response};

openraft::declare_raft_types!(
    /// openraft's parameters.
    pub Types:
        D = Command,
        R = Response,
        NodeId = u64,
        Node = openraft::BasicNode,
        SnapshotData = tokio::fs::File,
);

/// A node that holds state.
pub type NodeId = u64;
/// Where a node is reached.
pub type Node = openraft::BasicNode;
/// The running Raft.
pub type Raft = openraft::Raft<Types>;
/// An entry of the log.
pub type Entry = openraft::Entry<Types>;
/// Term, leader and index of an entry.
pub type LogId = openraft::LogId<NodeId>;
/// A vote.
pub type Vote = openraft::Vote<NodeId>;
/// Who holds state, as of some entry.
pub type Membership = openraft::StoredMembership<NodeId, Node>;
/// A storage failure, in openraft's words.
pub type StorageError = openraft::StorageError<NodeId>;

/// Raft's messages.
pub type AppendRequest = openraft::raft::AppendEntriesRequest<Types>;
/// The answer to [`AppendRequest`].
pub type AppendResponse = openraft::raft::AppendEntriesResponse<NodeId>;
/// Asks for a vote.
pub type VoteRequest = openraft::raft::VoteRequest<NodeId>;
/// The answer to [`VoteRequest`].
pub type VoteResponse = openraft::raft::VoteResponse<NodeId>;
/// A piece of a snapshot.
pub type SnapshotRequest = openraft::raft::InstallSnapshotRequest<Types>;
/// The answer to [`SnapshotRequest`].
pub type SnapshotResponse = openraft::raft::InstallSnapshotResponse<NodeId>;

/// A boxed future, so that [`Transport`] can be an object.
pub type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, TransportError>> + Send + 'a>>;

/// A message did not arrive, or no answer came back.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct TransportError(pub String);

/// Carries Raft's messages to other nodes; each call ends within `within`. The receiving side hands them to
/// [`Raft`] (see `Store::raft`).
pub trait Transport: Send + Sync + 'static {
    /// Delivers entries.
    fn append<'a>(
        &'a self,
        target: NodeId,
        node: &'a Node,
        request: AppendRequest,
        within: std::time::Duration,
    ) -> Reply<'a, AppendResponse>;
    /// Asks for a vote.
    fn vote<'a>(
        &'a self,
        target: NodeId,
        node: &'a Node,
        request: VoteRequest,
        within: std::time::Duration,
    ) -> Reply<'a, VoteResponse>;
    /// Delivers a piece of a snapshot.
    fn snapshot<'a>(
        &'a self,
        target: NodeId,
        node: &'a Node,
        request: SnapshotRequest,
        within: std::time::Duration,
    ) -> Reply<'a, SnapshotResponse>;
}

/// The transport of a node on its own: it reaches nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Solo;

impl Solo {
    fn nobody<T>(target: NodeId) -> Reply<'static, T>
    where
        T: Send + 'static,
    {
        Box::pin(async move {
            Err(TransportError(format!(
                "node {target} cannot be reached: this node is on its own"
            )))
        })
    }
}

impl Transport for Solo {
    fn append(
        &self,
        target: NodeId,
        _: &Node,
        _: AppendRequest,
        _: std::time::Duration,
    ) -> Reply<'_, AppendResponse> {
        Solo::nobody(target)
    }
    fn vote(
        &self,
        target: NodeId,
        _: &Node,
        _: VoteRequest,
        _: std::time::Duration,
    ) -> Reply<'_, VoteResponse> {
        Solo::nobody(target)
    }
    fn snapshot(
        &self,
        target: NodeId,
        _: &Node,
        _: SnapshotRequest,
        _: std::time::Duration,
    ) -> Reply<'_, SnapshotResponse> {
        Solo::nobody(target)
    }
}

/// Gives openraft one client per peer.
#[derive(Clone)]
pub(crate) struct Network(pub(crate) Arc<dyn Transport>);

/// The client of one peer.
pub(crate) struct Client {
    transport: Arc<dyn Transport>,
    target: NodeId,
    node: Node,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: NodeId, node: &Node) -> Client {
        Client {
            transport: self.0.clone(),
            target,
            node: node.clone(),
        }
    }
}

fn unreachable<E: std::error::Error>(error: TransportError) -> RPCError<NodeId, Node, E> {
    RPCError::Unreachable(Unreachable::from(AnyError::new(&error)))
}

impl RaftNetwork<Types> for Client {
    async fn append_entries(
        &mut self,
        rpc: AppendRequest,
        option: RPCOption,
    ) -> Result<AppendResponse, RPCError<NodeId, Node, RaftError<NodeId>>> {
        self.transport
            .append(self.target, &self.node, rpc, option.hard_ttl())
            .await
            .map_err(unreachable)
    }

    async fn install_snapshot(
        &mut self,
        rpc: SnapshotRequest,
        option: RPCOption,
    ) -> Result<SnapshotResponse, RPCError<NodeId, Node, RaftError<NodeId, InstallSnapshotError>>> {
        self.transport
            .snapshot(self.target, &self.node, rpc, option.hard_ttl())
            .await
            .map_err(unreachable)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest,
        option: RPCOption,
    ) -> Result<VoteResponse, RPCError<NodeId, Node, RaftError<NodeId>>> {
        self.transport
            .vote(self.target, &self.node, rpc, option.hard_ttl())
            .await
            .map_err(unreachable)
    }
}
