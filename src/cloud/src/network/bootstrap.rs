//! What the cloud has from its first start: the external network.

use std::net::IpAddr;

use ipnet::IpNet;
use rusqlite::Connection;

use super::networks::{self, Network};
use super::ranges;
use super::rows::Meta;
use super::subnets::Subnet;
use crate::config::External;
use crate::{Cloud, Config, Result};

/// The external network's name.
pub const EXTERNAL_NETWORK: &str = "ext-net";

/// Makes `ext-net` from the configuration, unless it is there. Its first address is the host's, on the TAP.
///
/// # Errors
/// The store's, and a range that has no room for hosts.
pub async fn bootstrap(cloud: &Cloud) -> Result<()> {
    let Some(external) = cloud.config.external.clone() else {
        return Ok(());
    };
    let config = cloud.config.clone();
    cloud
        .store
        .write("bootstrap", move |conn| make_external(conn, &config, &external))
        .await
}

pub(super) fn make_external(conn: &Connection, config: &Config, external: &External) -> Result<()> {
    if let Some(mut network) = networks::all(conn)?
        .into_iter()
        .find(|network| !network.uplink.is_empty())
    {
        // The operator gave the TAP another name: only that can change, addresses are in use.
        if network.uplink != external.tap {
            network.uplink.clone_from(&external.tap);
            network.meta.touch();
            network.save(conn)?;
        }
        return Ok(());
    }
    let mut network = Network {
        meta: Meta::new("", EXTERNAL_NETWORK, "The way out"),
        admin_state_up: true,
        shared: false,
        external: true,
        is_default: true,
        mtu: config.mtu,
        vni: networks::free_vni(conn, None)?,
        port_security_enabled: true,
        dns_domain: String::new(),
        zone_hints: Vec::new(),
        uplink: external.tap.clone(),
    };
    network.meta.revision = 1;
    network.save(conn)?;
    let cidr = IpNet::V4(external.cidr.trunc());
    let gateway: IpAddr = ranges::hosts(cidr).0;
    let subnet = Subnet {
        meta: Meta::new("", EXTERNAL_NETWORK, ""),
        network_id: network.meta.id,
        subnet_pool_id: None,
        cidr,
        gateway_ip: Some(gateway),
        enable_dhcp: false,
        dhcp_server: None,
        pools: ranges::default_pools(cidr, Some(gateway)),
        dns_nameservers: Vec::new(),
        host_routes: Vec::new(),
        ipv6_ra_mode: None,
        ipv6_address_mode: None,
    };
    if subnet.pools.is_empty() {
        return Err(crate::Error::BadRequest(format!(
            "The external network's range {cidr} has no address beside the host's own: give it a larger one."
        )));
    }
    subnet.save(conn)
}
