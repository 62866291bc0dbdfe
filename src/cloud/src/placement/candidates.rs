//! Which providers could give what someone needs.

use rusqlite::Connection;
use uuid::Uuid;

use super::allocations::{self, Amounts};
use super::names;
use super::providers::{self, Inventory, Provider};
use crate::{Cloud, Context, Error, Result};

/// What a provider must have and be.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// So much of each class, free.
    pub resources: Amounts,
    /// For each: one of these traits.
    pub required: Vec<Vec<String>>,
    /// None of these traits.
    pub forbidden: Vec<String>,
    /// For each: one of these aggregates.
    pub member_of: Vec<Vec<Uuid>>,
    /// None of these aggregates.
    pub not_member_of: Vec<Uuid>,
}

impl Request {
    /// All names are known ones.
    pub(super) fn check(&self, conn: &Connection) -> Result<()> {
        for class in self.resources.keys() {
            if !names::has_class(conn, class)? {
                let class: String = class.chars().take(64).collect();
                return Err(Error::BadRequest(format!(
                    "Invalid resource class in resources parameter: No such resource class {class}."
                )));
            }
        }
        for name in self.required.iter().flatten().chain(&self.forbidden) {
            if !names::has_trait(conn, name)? {
                let name: String = name.chars().take(64).collect();
                return Err(Error::BadRequest(format!("No such trait(s): {name}.")));
            }
        }
        Ok(())
    }

    /// The provider has and is all of it.
    pub(super) fn fits(&self, conn: &Connection, provider: Uuid) -> Result<bool> {
        if !self.resources.is_empty() {
            let inventories = providers::inventories_of(conn, provider)?;
            for (class, amount) in &self.resources {
                let Some(inventory) = inventories.get(class) else {
                    return Ok(false);
                };
                if !inventory.admits(*amount, allocations::used(conn, provider, class)?) {
                    return Ok(false);
                }
            }
        }
        if !(self.required.is_empty() && self.forbidden.is_empty()) {
            let traits = providers::traits_of(conn, provider)?;
            if !self
                .required
                .iter()
                .all(|any| any.iter().any(|name| traits.contains(name)))
                || self.forbidden.iter().any(|name| traits.contains(name))
            {
                return Ok(false);
            }
        }
        if !(self.member_of.is_empty() && self.not_member_of.is_empty()) {
            let aggregates = providers::aggregates_of(conn, provider)?;
            let has = |id: &Uuid| aggregates.contains(&id.to_string());
            if !self.member_of.iter().all(|any| any.iter().any(has)) || self.not_member_of.iter().any(has) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A provider that could give all of it, with what it has, what is used, and its traits.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Candidate {
    pub provider: Provider,
    pub root: Uuid,
    pub inventories: Vec<(String, Inventory, u64)>,
    pub traits: Vec<String>,
}

/// Candidates, at most `limit`. Each request is met by one provider: this cloud's nodes have no parts of their own.
pub async fn list(
    cloud: &Cloud,
    ctx: &Context,
    request: Request,
    in_tree: Option<Uuid>,
    limit: Option<usize>,
) -> Result<Vec<Candidate>> {
    ctx.require("allocation_candidates", "list")?;
    cloud
        .store
        .read(move |conn| {
            request.check(conn)?;
            let tree = match in_tree {
                None => None,
                Some(id) => match providers::get(conn, id)? {
                    None => return Ok(Vec::new()),
                    Some(provider) => Some(provider.root(conn)?),
                },
            };
            let mut found = Vec::new();
            for provider in providers::all(conn)? {
                if limit.is_some_and(|limit| found.len() >= limit) {
                    break;
                }
                let root = provider.root(conn)?;
                if tree.is_some_and(|tree| tree != root) || !request.fits(conn, provider.id)? {
                    continue;
                }
                let mut inventories = Vec::new();
                for (class, inventory) in providers::inventories_of(conn, provider.id)? {
                    let used = allocations::used(conn, provider.id, &class)?;
                    inventories.push((class, inventory, used));
                }
                found.push(Candidate {
                    root,
                    inventories,
                    traits: providers::traits_of(conn, provider.id)?.into_iter().collect(),
                    provider,
                });
            }
            Ok(found)
        })
        .await
}
