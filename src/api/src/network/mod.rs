//! Networks (Neutron v2.0): routes, wire types, handlers. The rules are `cloud::network`'s.

mod address_scopes;
mod attributes;
mod default_rules;
mod extensions;
mod floating_ips;
mod inventory;
mod networks;
mod ports;
mod query;
mod quotas;
mod rbac;
mod resource;
mod routers;
mod security_groups;
mod security_rules;
mod subnet_pools;
mod subnets;
mod tags;
#[cfg(test)]
mod tests;

use axum::Router;
use axum::routing::get;

use crate::AppState;

/// Routes below `/network`.
pub fn router() -> Router<AppState> {
    let v2 = Router::new()
        .merge(resource::routes::<networks::Networks>("/networks"))
        .merge(resource::routes::<subnets::Subnets>("/subnets"))
        .merge(resource::routes::<ports::Ports>("/ports"))
        .merge(resource::routes::<routers::Routers>("/routers"))
        .merge(routers::actions())
        .merge(resource::routes::<floating_ips::FloatingIps>("/floatingips"))
        .merge(resource::routes::<subnet_pools::SubnetPools>("/subnetpools"))
        .merge(subnet_pools::actions())
        .merge(resource::routes::<address_scopes::AddressScopes>(
            "/address-scopes",
        ))
        .merge(resource::routes::<rbac::Policies>("/rbac-policies"))
        .merge(default_rules::routes())
        .merge(security_groups::routes())
        .merge(extensions::routes())
        .merge(quotas::routes())
        .merge(inventory::routes())
        .merge(tags::routes());
    Router::new()
        .route("/", get(extensions::versions))
        .route("/v2.0", get(extensions::resources))
        .route("/v2.0/", get(extensions::resources))
        .nest("/v2.0", v2)
}
