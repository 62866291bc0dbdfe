//! Who has taken what of which provider.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};
use uuid::Uuid;

use super::{concurrent, count, in_use, missing, names, providers};
use crate::compute::now;
use crate::{Cloud, Context, Error, Result};

/// Amounts by resource class.
pub type Amounts = BTreeMap<String, u64>;
/// Amounts by provider.
pub type Shares = BTreeMap<Uuid, Amounts>;

/// Who takes something: a server.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Consumer {
    pub id: Uuid,
    pub project_id: String,
    pub user_id: String,
    /// `INSTANCE`, or what an operator's tool says (1.38).
    pub kind: String,
    pub generation: u64,
}

/// The consumer of this id.
pub(super) fn consumer(conn: &Connection, id: Uuid) -> Result<Option<Consumer>> {
    let mut query = conn.prepare_cached(
        "SELECT project_id, user_id, type, generation FROM placement_consumers WHERE id = ?1",
    )?;
    Ok(query
        .query_row([id.to_string()], |row| {
            Ok(Consumer {
                id,
                project_id: row.get(0)?,
                user_id: row.get(1)?,
                kind: row.get(2)?,
                generation: row.get(3)?,
            })
        })
        .optional()?)
}

/// What all consumers have taken of a class of a provider.
pub(super) fn used(conn: &Connection, provider: Uuid, class: &str) -> Result<u64> {
    let sum: i64 = conn
        .prepare_cached(
            "SELECT COALESCE(SUM(used), 0) FROM placement_allocations WHERE provider_id = ?1 AND resource_class = ?2",
        )?
        .query_row([&provider.to_string(), class], |row| row.get(0))?;
    count(sum)
}

/// What a consumer has taken.
pub(super) fn shares_of(conn: &Connection, consumer: Uuid) -> Result<Shares> {
    let mut query = conn.prepare_cached(
        "SELECT provider_id, resource_class, used FROM placement_allocations WHERE consumer_id = ?1",
    )?;
    let rows = query.query_map([consumer.to_string()], |row| {
        Ok((
            crate::compute::uuid_column(row, 0)?,
            row.get::<_, String>(1)?,
            row.get::<_, u64>(2)?,
        ))
    })?;
    let mut shares = Shares::new();
    for row in rows {
        let (provider, class, used) = row?;
        shares.entry(provider).or_default().insert(class, used);
    }
    Ok(shares)
}

/// Gives the consumer exactly these shares; `None`: there is no room, and nothing is changed.
fn replace(conn: &Connection, consumer: &Consumer, shares: &Shares) -> Result<Option<()>> {
    let id = consumer.id.to_string();
    let before = shares_of(conn, consumer.id)?;
    for (provider, amounts) in shares {
        let inventories = providers::inventories_of(conn, *provider)?;
        for (class, amount) in amounts {
            let had = before
                .get(provider)
                .and_then(|had| had.get(class))
                .copied()
                .unwrap_or(0);
            // Who wants no more than he has is never turned away.
            if *amount <= had {
                continue;
            }
            let others = used(conn, *provider, class)?.saturating_sub(had);
            if !inventories
                .get(class)
                .is_some_and(|inventory| inventory.admits(*amount, others))
            {
                return Ok(None);
            }
        }
    }
    conn.prepare_cached("DELETE FROM placement_allocations WHERE consumer_id = ?1")?
        .execute([&id])?;
    if shares.values().all(BTreeMap::is_empty) {
        conn.prepare_cached("DELETE FROM placement_consumers WHERE id = ?1")?
            .execute([&id])?;
        return Ok(Some(()));
    }
    conn.prepare_cached(
        "INSERT INTO placement_consumers (id, project_id, user_id, type, generation) VALUES (?1, ?2, ?3, ?4, ?5) \
         ON CONFLICT (id) DO UPDATE SET project_id = excluded.project_id, user_id = excluded.user_id, \
         type = excluded.type, generation = excluded.generation",
    )?
    .execute(params![
        id,
        consumer.project_id,
        consumer.user_id,
        consumer.kind,
        consumer.generation + 1
    ])?;
    for (provider, amounts) in shares {
        for (class, amount) in amounts {
            conn.prepare_cached("INSERT INTO placement_allocations VALUES (?1, ?2, ?3, ?4, ?5)")?
                .execute(params![id, provider.to_string(), class, amount, now()])?;
        }
        if let Some(mut provider) = providers::get(conn, *provider)? {
            provider.touch(conn)?;
        }
    }
    Ok(Some(()))
}

/// A server takes its share of a node, or another share than it had; classes of which it needs nothing are left out. `false`:
/// there is no room, and nothing is changed.
pub fn claim(
    conn: &Connection,
    (server, project, user): (Uuid, &str, &str),
    provider: Uuid,
    amounts: impl IntoIterator<Item = (&'static str, u64)>,
) -> Result<bool> {
    let amounts: Amounts = amounts
        .into_iter()
        .filter(|(_, amount)| *amount > 0)
        .map(|(class, amount)| (class.to_owned(), amount))
        .collect();
    let shares = Shares::from([(provider, amounts)]);
    if shares_of(conn, server)? == shares {
        return Ok(true);
    }
    let known = consumer(conn, server)?;
    let consumer = Consumer {
        id: server,
        project_id: project.to_owned(),
        user_id: user.to_owned(),
        kind: "INSTANCE".to_owned(),
        generation: known.map_or(0, |c| c.generation),
    };
    Ok(replace(conn, &consumer, &shares)?.is_some())
}

/// A server has left its node.
pub fn release(conn: &Connection, server: Uuid) -> Result<()> {
    for table in [
        "placement_allocations WHERE consumer_id",
        "placement_consumers WHERE id",
    ] {
        conn.prepare_cached(&format!("DELETE FROM {table} = ?1"))?
            .execute([server.to_string()])?;
    }
    Ok(())
}

/// What a consumer has taken; without a consumer: nothing.
pub async fn show(
    cloud: &Cloud,
    ctx: &Context,
    id: Uuid,
) -> Result<(Option<Consumer>, Shares, BTreeMap<Uuid, u64>)> {
    ctx.require("allocations", "list")?;
    cloud
        .store
        .read(move |conn| {
            let shares = shares_of(conn, id)?;
            let mut generations = BTreeMap::new();
            for provider in shares.keys() {
                if let Some(found) = providers::get(conn, *provider)? {
                    generations.insert(*provider, found.generation);
                }
            }
            Ok((consumer(conn, id)?, shares, generations))
        })
        .await
}

/// What was taken of a provider, by consumer.
pub async fn of_provider(
    cloud: &Cloud,
    ctx: &Context,
    id: Uuid,
) -> Result<(providers::Provider, BTreeMap<Uuid, (u64, Amounts)>)> {
    ctx.require("allocations", "list")?;
    cloud
        .store
        .read(move |conn| {
            let provider = providers::find(conn, id)?;
            let mut query = conn.prepare_cached(
                "SELECT a.consumer_id, a.resource_class, a.used, c.generation FROM placement_allocations a \
                 JOIN placement_consumers c ON c.id = a.consumer_id WHERE a.provider_id = ?1",
            )?;
            let mut rows = query.query([id.to_string()])?;
            let mut found: BTreeMap<Uuid, (u64, Amounts)> = BTreeMap::new();
            while let Some(row) = rows.next()? {
                let entry = found.entry(crate::compute::uuid_column(row, 0)?).or_default();
                entry.0 = row.get(3)?;
                entry.1.insert(row.get(1)?, row.get(2)?);
            }
            Ok((provider, found))
        })
        .await
}

/// What one consumer is to have.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Change {
    pub consumer: Uuid,
    /// Empty: nothing any more.
    pub shares: Shares,
    pub project_id: String,
    pub user_id: String,
    pub kind: Option<String>,
    /// The generation that the caller knows (1.28): `Some(None)` for a new consumer; `None`: it does not say.
    pub seen: Option<Option<u64>>,
}

/// Whether a change of a consumer was of the one that the caller knows.
fn check_seen(known: Option<&Consumer>, change: &Change) -> Result<()> {
    let Some(seen) = change.seen else { return Ok(()) };
    if seen != known.map(|c| c.generation) {
        return Err(concurrent(format!(
            "consumer generation conflict - expected {} but got {}",
            known.map_or("null".into(), |c| c.generation.to_string()),
            seen.map_or("null".into(), |g| g.to_string())
        )));
    }
    Ok(())
}

pub(super) fn apply(conn: &Connection, change: &Change) -> Result<()> {
    let known = consumer(conn, change.consumer)?;
    check_seen(known.as_ref(), change)?;
    for (provider, amounts) in &change.shares {
        if providers::get(conn, *provider)?.is_none() {
            return Err(Error::BadRequest(format!(
                "Allocation for resource provider '{provider}' that does not exist."
            )));
        }
        for class in amounts.keys() {
            names::check_class(conn, class)?;
        }
    }
    let consumer = Consumer {
        id: change.consumer,
        project_id: change.project_id.clone(),
        user_id: change.user_id.clone(),
        kind: change
            .kind
            .clone()
            .or(known.as_ref().map(|c| c.kind.clone()))
            .unwrap_or_else(|| "unknown".to_owned()),
        generation: known.map_or(0, |c| c.generation),
    };
    replace(conn, &consumer, &change.shares)?.ok_or_else(|| {
        in_use(
            "placement.undefined_code",
            format!(
                "Unable to allocate inventory for consumer {}: There is not enough of it.",
                change.consumer
            ),
        )
    })
}

/// Sets what consumers have, all or none.
pub async fn set(cloud: &Cloud, ctx: &Context, changes: Vec<Change>) -> Result<()> {
    ctx.require("allocations", "update")?;
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            // Those that give up go first, so that one may take what another had.
            let (go, come): (Vec<_>, Vec<_>) = changes.iter().partition(|c| c.shares.is_empty());
            go.into_iter()
                .chain(come)
                .try_for_each(|change| apply(conn, change))
        })
        .await
}

/// A consumer gives everything up.
pub async fn delete(cloud: &Cloud, ctx: &Context, id: Uuid) -> Result<()> {
    ctx.require("allocations", "update")?;
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            if shares_of(conn, id)?.is_empty() {
                return Err(missing(format!("No allocations for consumer '{id}'")));
            }
            release(conn, id)
        })
        .await
}

/// What a project has taken, by consumers' type (1.38) and resource class, and how many consumers there are.
pub async fn usages(
    cloud: &Cloud,
    ctx: &Context,
    project: String,
    user: Option<String>,
) -> Result<BTreeMap<String, (u64, Amounts)>> {
    ctx.require("usages", "list")?;
    cloud
        .store
        .read(move |conn| {
            let mut query = conn.prepare_cached(
                "SELECT c.type, c.id, a.resource_class, a.used FROM placement_consumers c \
                 JOIN placement_allocations a ON a.consumer_id = c.id \
                 WHERE c.project_id = ?1 AND (?2 IS NULL OR c.user_id = ?2)",
            )?;
            let mut rows = query.query(params![project, user])?;
            let mut seen = std::collections::BTreeSet::new();
            let mut found: BTreeMap<String, (u64, Amounts)> = BTreeMap::new();
            while let Some(row) = rows.next()? {
                let entry = found.entry(row.get(0)?).or_default();
                if seen.insert(row.get::<_, String>(1)?) {
                    entry.0 += 1;
                }
                *entry.1.entry(row.get(2)?).or_default() += row.get::<_, u64>(3)?;
            }
            Ok(found)
        })
        .await
}

/// Inventories and allocations that change together (1.30).
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Reshape {
    pub inventories: Vec<(Uuid, u64, BTreeMap<String, providers::Inventory>)>,
    pub allocations: Vec<Change>,
}

/// Carries out a change of both, all or nothing.
pub async fn reshape(cloud: &Cloud, ctx: &Context, reshape: Reshape) -> Result<()> {
    ctx.require("resource_providers", "update")?;
    ctx.require("allocations", "update")?;
    cloud
        .store
        .write(&ctx.user_id, move |conn| {
            for (id, seen, _) in &reshape.inventories {
                providers::check_generation(&providers::find(conn, *id)?, Some(*seen))?;
            }
            // First what there is beside what there will be, so that consumers can move over; then what there will be.
            for (id, _, inventories) in &reshape.inventories {
                let mut all = providers::inventories_of(conn, *id)?;
                all.extend(inventories.clone());
                providers::save_inventories(conn, &mut providers::find(conn, *id)?, &all)?;
            }
            for change in &reshape.allocations {
                let known = consumer(conn, change.consumer)?;
                check_seen(known.as_ref(), change)?;
            }
            for change in &reshape.allocations {
                release_shares(conn, change.consumer)?;
            }
            for change in &reshape.allocations {
                let mut change = change.clone();
                change.seen = None;
                apply(conn, &change)?;
            }
            for (id, _, inventories) in &reshape.inventories {
                providers::save_inventories(conn, &mut providers::find(conn, *id)?, inventories)?;
            }
            Ok(())
        })
        .await
}

fn release_shares(conn: &Connection, consumer: Uuid) -> Result<()> {
    conn.prepare_cached("DELETE FROM placement_allocations WHERE consumer_id = ?1")?
        .execute([consumer.to_string()])?;
    Ok(())
}
