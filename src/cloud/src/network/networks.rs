//! Networks: what is on one is on one layer 2.

use rusqlite::{Connection, Row};
use uuid::Uuid;

use super::errors::{bad, conflict, disallowed, invalid, named, no_network};
use super::rows::{self, Columns, Condition, Meta, Where};
use super::{floating_ips, ports, quotas, rbac, security_groups, subnets};
use crate::error::Kind;
use crate::{Config, Context, Result};

/// The largest virtual network identifier (Geneve, RFC 8926 §3.5).
const MAX_VNI: u32 = (1 << 24) - 1;

/// A network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// What every resource has.
    pub meta: Meta,
    /// Frames pass at all.
    pub admin_state_up: bool,
    /// Every project may use it.
    pub shared: bool,
    /// Routers may have their gateways on it, and floating IPs come from it.
    pub external: bool,
    /// The external network that is meant where none is named.
    pub is_default: bool,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// Its virtual network identifier.
    pub vni: u32,
    /// What its ports have if they do not say.
    pub port_security_enabled: bool,
    /// The domain that DHCP tells.
    pub dns_domain: String,
    /// Availability zones that were asked for.
    pub zone_hints: Vec<String>,
    /// The TAP by which it leaves the node; empty: it does not.
    pub uplink: String,
}

/// What a request says of a network; `None`: nothing.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct Fields {
    pub project_id: Option<String>,
    pub name: Option<String>,
    pub description: Option<String>,
    pub admin_state_up: Option<bool>,
    pub shared: Option<bool>,
    pub external: Option<bool>,
    pub is_default: Option<bool>,
    pub mtu: Option<u16>,
    pub port_security_enabled: Option<bool>,
    pub dns_domain: Option<String>,
    pub zone_hints: Option<Vec<String>>,
    pub provider_type: Option<String>,
    pub provider_physical: Option<String>,
    pub segmentation_id: Option<u32>,
}

const TABLE: &str = "networks";
const SEEN: &str = "shared=1 OR external=1 OR id IN (SELECT object_id FROM network_rbac WHERE target=?)";

impl Network {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Network {
            meta: Meta::read(row)?,
            admin_state_up: row.get("admin_state_up")?,
            shared: row.get("shared")?,
            external: row.get("external")?,
            is_default: row.get("is_default")?,
            mtu: row.get("mtu")?,
            vni: row.get("vni")?,
            port_security_enabled: row.get("port_security_enabled")?,
            dns_domain: row.get("dns_domain")?,
            zone_hints: rows::json(row, "zone_hints")?,
            uplink: row.get("uplink")?,
        })
    }

    pub(crate) fn save(&self, conn: &Connection) -> Result<()> {
        let mut columns: Columns = self.meta.columns();
        columns.extend([
            ("admin_state_up", self.admin_state_up.into()),
            ("shared", self.shared.into()),
            ("external", self.external.into()),
            ("is_default", self.is_default.into()),
            ("mtu", self.mtu.into()),
            ("vni", self.vni.into()),
            ("port_security_enabled", self.port_security_enabled.into()),
            ("dns_domain", rows::text(&self.dns_domain)),
            ("zone_hints", rows::to_json(&self.zone_hints)),
            ("uplink", rows::text(&self.uplink)),
        ]);
        rows::save(conn, TABLE, columns)
    }

    /// The caller owns it, or is admin.
    pub(crate) fn is_owned_by(&self, ctx: &Context) -> bool {
        ctx.sees(&self.meta.project_id)
    }

    fn apply(&mut self, config: &Config, fields: &Fields) -> Result<()> {
        let set = |place: &mut bool, value: Option<bool>| *place = value.unwrap_or(*place);
        set(&mut self.admin_state_up, fields.admin_state_up);
        set(&mut self.shared, fields.shared);
        set(&mut self.external, fields.external);
        set(&mut self.is_default, fields.is_default);
        set(&mut self.port_security_enabled, fields.port_security_enabled);
        let texts = [
            (&mut self.meta.name, &fields.name),
            (&mut self.meta.description, &fields.description),
            (&mut self.dns_domain, &fields.dns_domain),
        ];
        for (place, value) in texts {
            if let Some(value) = value {
                place.clone_from(value);
            }
        }
        if let Some(mtu) = fields.mtu.filter(|mtu| *mtu != 0) {
            // Less than IPv4's own minimum no network card takes.
            if mtu < 68 || mtu > config.mtu {
                return Err(invalid(format_args!(
                    "Requested MTU is not between 68 and {}",
                    config.mtu
                )));
            }
            self.mtu = mtu;
        }
        if let Some(hints) = &fields.zone_hints {
            if let Some(zone) = hints.iter().find(|zone| **zone != config.availability_zone) {
                let message = format!("AvailabilityZone {zone} could not be found.");
                return Err(named(Kind::NotFound, "AvailabilityZoneNotFound", message));
            }
            self.zone_hints.clone_from(hints);
        }
        if self.is_default && !self.external {
            return Err(bad(
                "InvalidInput",
                "Only external networks can be the default network.",
            ));
        }
        Ok(())
    }
}

/// Every host must be able to get packets of this size whole (RFC 791, RFC 8200 §5).
pub(crate) fn check_mtu(network: &Network, ip_version: u8) -> Result<()> {
    let least = if ip_version == 4 { 68 } else { 1280 };
    if network.mtu >= least {
        return Ok(());
    }
    let message = format!(
        "Unable to complete operation on network {}. Its MTU {} is less than IPv{ip_version} needs: {least}.",
        network.meta.id, network.mtu
    );
    Err(conflict("NetworkMTUSubnetConflict", message))
}

/// What only an admin may say.
fn check_rights(ctx: &Context, verb: &str, fields: &Fields) -> Result<()> {
    if ctx.is_admin() {
        return Ok(());
    }
    let asked = [
        ("shared", fields.shared == Some(true)),
        ("router:external", fields.external == Some(true)),
        ("is_default", fields.is_default == Some(true)),
        ("provider:network_type", fields.provider_type.is_some()),
        ("provider:physical_network", fields.provider_physical.is_some()),
        ("provider:segmentation_id", fields.segmentation_id.is_some()),
    ];
    match asked.iter().find(|(_, asked)| *asked) {
        Some((name, _)) => Err(disallowed(&format!("rule:{verb}_network:{name}"))),
        None => Ok(()),
    }
}

/// Makes a network.
pub fn create(conn: &Connection, config: &Config, ctx: &Context, fields: &Fields) -> Result<Network> {
    ctx.require("networks", "create")?;
    check_rights(ctx, "create", fields)?;
    let project = rows::owner(ctx, fields.project_id.as_deref())?;
    quotas::charge(conn, &project, quotas::Resource::Network, 1)?;
    security_groups::ensure_default(conn, &project)?;
    if let Some(kind) = fields.provider_type.as_deref().filter(|kind| *kind != "geneve") {
        return Err(invalid(format_args!("network_type value '{kind}' not supported")));
    }
    if fields.provider_physical.is_some() {
        return Err(invalid("provider:physical_network specified for geneve network"));
    }
    let mut network = Network {
        meta: Meta::new(&project, "", ""),
        admin_state_up: true,
        shared: false,
        external: false,
        is_default: false,
        mtu: config.mtu,
        vni: free_vni(conn, fields.segmentation_id)?,
        port_security_enabled: true,
        dns_domain: String::new(),
        zone_hints: Vec::new(),
        uplink: String::new(),
    };
    network.apply(config, fields)?;
    if network.is_default {
        check_only_default(conn, network.meta.id)?;
    }
    network.meta.revision = 1;
    network.save(conn)?;
    rbac::follow(conn, &network)?;
    Ok(network)
}

/// Changes a network. Saying what is so already changes nothing.
pub fn update(
    conn: &Connection,
    config: &Config,
    ctx: &Context,
    id: Uuid,
    fields: &Fields,
) -> Result<Network> {
    ctx.require("networks", "update")?;
    let old = get(conn, ctx, id)?;
    rows::check_owner(ctx, &old.meta, "rule:update_network")?;
    check_rights(ctx, "update", fields)?;
    if fields.provider_type.is_some()
        || fields.provider_physical.is_some()
        || fields.segmentation_id.is_some()
    {
        return Err(invalid("Plugin does not support updating provider attributes"));
    }
    let mut new = old.clone();
    new.apply(config, fields)?;
    if new == old {
        return Ok(old);
    }
    if old.shared && !new.shared {
        let theirs = Condition::equals("network_id", id)
            .and(Condition::new(
                "project_id<>?",
                vec![rows::text(&old.meta.project_id)],
            ))
            .and(Condition::new(
                "project_id<>'' AND project_id NOT IN (SELECT target FROM network_rbac WHERE object_id=?)",
                vec![rows::text(id)],
            ));
        if rows::count(conn, "ports", theirs.clone())? + rows::count(conn, "subnets", theirs)? > 0 {
            let message = format!(
                "Unable to reconfigure sharing settings for network {id}. Multiple projects are using it."
            );
            return Err(conflict("InvalidSharedSetting", message));
        }
    }
    if old.external && !new.external {
        let used = Condition::equals("network_id", id).and(Condition::new(
            "device_owner IN (?,?)",
            vec![rows::text(ports::ROUTER_GATEWAY), rows::text(ports::FLOATING_IP)],
        ));
        if rows::count(conn, "ports", used)? > 0 {
            let message = format!(
                "External network {id} cannot be updated to be made non-external, since it has existing gateway ports"
            );
            return Err(conflict("ExternalNetworkInUse", message));
        }
    }
    if new.is_default && !old.is_default {
        check_only_default(conn, id)?;
    }
    if new.mtu < old.mtu {
        for subnet in subnets::of_network(conn, id)? {
            check_mtu(&new, subnet.ip_version())?;
        }
    }
    new.meta.touch();
    new.save(conn)?;
    rbac::follow(conn, &new)?;
    Ok(new)
}

/// Removes a network with its subnets, and with floating IPs of it that stand for nothing; refused while ports of others
/// are on it.
pub fn delete(conn: &Connection, ctx: &Context, id: Uuid) -> Result<()> {
    ctx.require("networks", "delete")?;
    let network = get(conn, ctx, id)?;
    rows::check_owner(ctx, &network.meta, "rule:delete_network")?;
    floating_ips::delete_idle_of(conn, id)?;
    if rows::count(conn, "ports", Condition::equals("network_id", id))? > 0 {
        let message = format!(
            "Unable to complete operation on network {id}. There are one or more ports still in use on the network."
        );
        return Err(conflict("NetworkInUse", message));
    }
    for subnet in subnets::of_network(conn, id)? {
        subnets::erase(conn, &subnet)?;
    }
    rbac::remove_of(conn, id)?;
    rows::remove(conn, TABLE, id)
}

/// The networks that the caller sees: its own, shared and external ones.
pub fn list(conn: &Connection, ctx: &Context, which: &Where) -> Result<Vec<Network>> {
    ctx.require("networks", "list")?;
    rows::select(
        conn,
        TABLE,
        Condition::visible(ctx, Some(SEEN))?.and(which.condition()),
        Network::read,
    )
}

/// One network that the caller sees.
pub fn get(conn: &Connection, ctx: &Context, id: Uuid) -> Result<Network> {
    let seen = Condition::visible(ctx, Some(SEEN))?.and(Condition::equals("id", id));
    rows::find(conn, TABLE, seen, Network::read)?.ok_or_else(|| no_network(id))
}

/// One network, whoever asks.
pub(crate) fn fetch(conn: &Connection, id: Uuid) -> Result<Network> {
    rows::find(conn, TABLE, Condition::equals("id", id), Network::read)?.ok_or_else(|| no_network(id))
}

/// All networks.
pub(crate) fn all(conn: &Connection) -> Result<Vec<Network>> {
    rows::select(conn, TABLE, Condition::all(), Network::read)
}

/// Networks that a server may be put on when its owner names none: the project's own and the shared ones, but no
/// external one.
pub fn available_networks(conn: &Connection, ctx: &Context) -> Result<Vec<Uuid>> {
    let project = rows::text(ctx.project()?);
    let own = Condition::new(
        "(project_id=? OR shared=1 OR id IN (SELECT object_id FROM network_rbac WHERE target=?)) AND external=0",
        vec![project.clone(), project],
    );
    Ok(rows::select(conn, TABLE, own, Network::read)?
        .into_iter()
        .map(|network| network.meta.id)
        .collect())
}

/// A change to a part of the network is one of the network.
pub(crate) fn bump(conn: &Connection, id: Uuid) -> Result<()> {
    let mut network = fetch(conn, id)?;
    network.meta.touch();
    network.save(conn)
}

pub(crate) fn free_vni(conn: &Connection, wanted: Option<u32>) -> Result<u32> {
    if let Some(vni) = wanted {
        if vni == 0 || vni > MAX_VNI {
            return Err(invalid(format_args!(
                "segmentation_id out of range (1 through {MAX_VNI})"
            )));
        }
        if rows::count(conn, TABLE, Condition::new("vni=?", vec![vni.into()]))? > 0 {
            let message = format!("Unable to create the network. The tunnel ID {vni} is in use.");
            return Err(conflict("TunnelIdInUse", message));
        }
        return Ok(vni);
    }
    let next: u32 = conn
        .prepare_cached("SELECT coalesce(max(vni), 0) + 1 FROM networks")?
        .query_row([], |row| row.get(0))?;
    if next <= MAX_VNI {
        return Ok(next);
    }
    // The end is reached: the first gap.
    let sql = "SELECT coalesce(min(n), 0) FROM (
                   SELECT 1 AS n WHERE NOT EXISTS (SELECT 1 FROM networks WHERE vni=1)
                   UNION ALL SELECT vni + 1 FROM networks a
                       WHERE NOT EXISTS (SELECT 1 FROM networks b WHERE b.vni = a.vni + 1)
               )";
    let gap: u32 = conn.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
    if (1..=MAX_VNI).contains(&gap) {
        return Ok(gap);
    }
    let message = "Unable to create the network. No project network is available for allocation.";
    Err(named(Kind::Unavailable, "NoNetworkAvailable", message))
}

fn check_only_default(conn: &Connection, id: Uuid) -> Result<()> {
    let others = Condition::new("is_default=1 AND id<>?", vec![rows::text(id)]);
    match rows::find(conn, TABLE, others, Network::read)? {
        None => Ok(()),
        Some(other) => Err(conflict(
            "DefaultExternalNetworkExists",
            format!("A default external network already exists: {}.", other.meta.id),
        )),
    }
}
