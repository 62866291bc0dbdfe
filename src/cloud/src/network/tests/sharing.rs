//! Networks that are shared with single projects.

use super::*;
use crate::network::Where;
use crate::network::rbac::{self, Fields, Policy};

fn fields(network: &Network, target: &str) -> Fields {
    Fields {
        object_type: Some("network".into()),
        action: Some("access_as_shared".into()),
        object_id: Some(network.meta.id),
        target: Some(target.into()),
        ..Default::default()
    }
}

fn share(bench: &Bench, ctx: &Context, network: &Network, target: &str) -> Result<Policy> {
    rbac::create(&bench.conn, ctx, &fields(network, target))
}

fn sees(bench: &Bench, project: &str, network: &Network) -> bool {
    let all = networks::list(&bench.conn, &member(project), &Where::default()).unwrap();
    all.iter().any(|seen| seen.meta.id == network.meta.id)
}

#[test]
fn a_network_is_shared_with_one_project_and_taken_back_when_it_is_empty() {
    let bench = Bench::new();
    let (ann, bob) = (member("a"), member("b"));
    let (network, subnet) = bench.plain(&ann, "n", "10.0.0.0/24");
    assert!(!sees(&bench, "b", &network));
    assert_eq!(refused(share(&bench, &bob, &network, "b")), "NetworkNotFound");
    assert_eq!(refused(share(&bench, &ann, &network, "*")), "PolicyNotAuthorized");
    let policy = share(&bench, &ann, &network, "b").unwrap();
    assert_eq!(refused(share(&bench, &ann, &network, "b")), "DuplicateRBACEntry");
    assert!(sees(&bench, "b", &network) && !sees(&bench, "c", &network));
    subnets::get(&bench.conn, &bob, subnet.meta.id).unwrap();
    assert_eq!(
        networks::available_networks(&bench.conn, &bob).unwrap(),
        [network.meta.id]
    );
    let port = bench.port(&bob, &network);
    assert_eq!(
        refused(networks::delete(&bench.conn, &bob, network.meta.id)),
        "PolicyNotAuthorized"
    );
    assert_eq!(
        refused(rbac::get(&bench.conn, &bob, policy.meta.id)),
        "RbacPolicyNotFound"
    );
    let to_c = Fields {
        target: Some("c".into()),
        ..Default::default()
    };
    for result in [
        rbac::delete(&bench.conn, &ann, policy.meta.id),
        rbac::update(&bench.conn, &ann, policy.meta.id, &to_c).map(|_| ()),
    ] {
        assert_eq!(refused(result), "RbacPolicyInUse");
    }
    ports::delete(&bench.conn, &bob, port.id).unwrap();
    rbac::update(&bench.conn, &ann, policy.meta.id, &to_c).unwrap();
    assert!(!sees(&bench, "b", &network) && sees(&bench, "c", &network));
    rbac::delete(&bench.conn, &ann, policy.meta.id).unwrap();
    assert!(!sees(&bench, "c", &network));
    share(&bench, &ann, &network, "b").unwrap();
    networks::delete(&bench.conn, &ann, network.meta.id).unwrap();
    assert_eq!(bench.count("network_rbac"), 0);
}

#[test]
fn a_policy_for_everyone_and_the_networks_attribute_are_one() {
    let bench = Bench::new();
    let root = admin();
    let network = bench.network(&root, "n");
    let set = |shared| {
        let fields = networks::Fields {
            shared: Some(shared),
            ..Default::default()
        };
        networks::update(&bench.conn, &bench.config, &root, network.meta.id, &fields).unwrap()
    };
    set(true);
    let all = rbac::list(&bench.conn, &root, &Where::default()).unwrap();
    assert_eq!(
        all.iter()
            .map(|policy| policy.target.as_str())
            .collect::<Vec<_>>(),
        ["*"]
    );
    set(false);
    assert_eq!(bench.count("network_rbac"), 0);
    let policy = share(&bench, &root, &network, "*").unwrap();
    let stored = || networks::get(&bench.conn, &root, network.meta.id).unwrap();
    assert!(stored().shared && sees(&bench, "b", &network));
    rbac::delete(&bench.conn, &root, policy.meta.id).unwrap();
    assert!(!stored().shared && !sees(&bench, "b", &network));
}
