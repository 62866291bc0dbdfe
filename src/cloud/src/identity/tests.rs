use serde_json::json;

use super::assignments::{self, Filter};
use super::credentials::NewCredential;
use super::directory::{Actor, Grant};
use super::domains::{DomainChange, NewDomain};
use super::groups::NewGroup;
use super::login::{Login, login};
use super::projects::{NewProject, ProjectChange};
use super::users::{NewUser, UserChange};
use super::*;
use crate::Cloud;
use crate::testing::{ADMIN_PASSWORD, TestCloud, cloud};

fn from<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

async fn log_in(cloud: &Cloud, value: serde_json::Value) -> Result<String> {
    login(cloud, &from::<Login>(value)).await.map(|(token, _)| token)
}

fn password(name: &str, domain: &str, password: &str, scope: serde_json::Value) -> serde_json::Value {
    let user = json!({"name": name, "domain": {"name": domain}, "password": password});
    json!({"identity": {"methods": ["password"], "password": {"user": user}}, "scope": scope})
}

async fn admin(test: &TestCloud) -> Context {
    let scope = json!({"system": {"all": true}});
    let token = log_in(&test.cloud, password("admin", "Default", ADMIN_PASSWORD, scope))
        .await
        .unwrap();
    test.cloud.identity.validate(&token).unwrap()
}

async fn role(test: &TestCloud, ctx: &Context, name: &str) -> String {
    roles::list(&test.cloud, ctx, Some(name.into()))
        .await
        .unwrap()
        .remove(0)
        .id
}

async fn give(test: &TestCloud, ctx: &Context, actor: Actor, name: &str, target: Target) {
    let grant = Grant {
        target,
        role_id: role(test, ctx, name).await,
        inherited: false,
    };
    assignments::grant(&test.cloud, ctx, actor, grant).await.unwrap();
}

/// A domain `acme` with a user `boss` who manages it, and the contexts of the cloud's administrator and of the boss.
async fn acme(test: &TestCloud) -> (Context, Context, String) {
    let root = admin(test).await;
    let domain = domains::create(&test.cloud, &root, from(json!({"name": "acme"})))
        .await
        .unwrap();
    let boss = json!({"name": "boss", "domain_id": domain.id, "password": "b"});
    let boss = users::create(&test.cloud, &root, from::<NewUser>(boss))
        .await
        .unwrap();
    give(
        test,
        &root,
        Actor::User(boss.id),
        "manager",
        Target::Domain(domain.id.clone()),
    )
    .await;
    let scope = json!({"domain": {"name": "acme"}});
    let token = log_in(&test.cloud, password("boss", "acme", "b", scope))
        .await
        .unwrap();
    (root, test.cloud.identity.validate(&token).unwrap(), domain.id)
}

fn is_forbidden<T: std::fmt::Debug>(result: Result<T>) -> bool {
    matches!(result, Err(Error::Forbidden(_)))
}

fn is_not_found<T: std::fmt::Debug>(result: Result<T>) -> bool {
    matches!(result, Err(Error::NotFound { .. }))
}

fn is_unauthorized<T>(result: Result<T>) -> bool {
    matches!(result, Err(Error::Unauthorized(_)))
}

#[tokio::test]
async fn bootstrapping_again_changes_nothing() {
    let test = cloud().await;
    let token = test.admin_token().await;
    bootstrap(&test.cloud, "another password").await.unwrap();
    test.cloud.identity.validate(&token).unwrap();
    admin(&test).await;
}

#[tokio::test]
async fn wrong_proofs_are_one_and_the_same_401() {
    let test = cloud().await;
    let none = || serde_json::Value::Null;
    let mut texts = std::collections::BTreeSet::new();
    for body in [
        password("admin", "Default", "wrong", none()),
        password("nobody", "Default", "wrong", none()),
        password("admin", "Nowhere", ADMIN_PASSWORD, none()),
        password(
            "admin",
            "Default",
            ADMIN_PASSWORD,
            json!({"project": {"id": "0".repeat(32)}}),
        ),
        password(
            "admin",
            "Default",
            ADMIN_PASSWORD,
            json!({"project": {"name": "x", "domain": {"id": "default"}}}),
        ),
        password(
            "admin",
            "Default",
            ADMIN_PASSWORD,
            json!({"domain": {"id": "default"}}),
        ),
    ] {
        match log_in(&test.cloud, body).await {
            Err(Error::Unauthorized(text)) => texts.insert(text),
            other => panic!("{other:?}"),
        };
    }
    assert_eq!(texts.len(), 1, "{texts:?}");
    // A token that is none is not there, which clients tell from a wrong password.
    let body = json!({"identity": {"methods": ["token"], "token": {"id": "gibberish"}}});
    let error = log_in(&test.cloud, body).await.unwrap_err();
    assert_eq!(error.kind(), Some(crate::error::Kind::NotFound), "{error}");
}

#[tokio::test]
async fn requests_that_make_no_sense_are_400() {
    let test = cloud().await;
    let user = json!({"id": "x", "password": "y"});
    for body in [
        json!({"identity": {"methods": []}}),
        json!({"identity": {"methods": ["password"]}}),
        json!({"identity": {"methods": ["password"], "password": {"user": {"name": "admin", "password": "x"}}}}),
        json!({"identity": {"methods": ["password"], "password": {"user": {"id": "x"}}}}),
        password(
            "admin",
            "Default",
            ADMIN_PASSWORD,
            json!({"project": {"id": "x"}, "domain": {"id": "y"}}),
        ),
        password(
            "admin",
            "Default",
            ADMIN_PASSWORD,
            json!({"project": {"name": "x"}}),
        ),
        password("admin", "Default", ADMIN_PASSWORD, json!({"system": {}})),
        password("admin", "Default", ADMIN_PASSWORD, json!("everything")),
        json!({"identity": {"methods": ["password", "password", "token", "token"], "password": {"user": user}}}),
    ] {
        let result = log_in(&test.cloud, body.clone()).await;
        assert!(matches!(result, Err(Error::BadRequest(_))), "{body}: {result:?}");
    }
}

#[tokio::test]
async fn a_role_taken_away_a_disabled_project_and_a_changed_password_end_tokens() {
    let test = cloud().await;
    let root = admin(&test).await;
    let identity = &test.cloud.identity;

    let token = test.token("ann", "one", "member").await;
    let ctx = identity.validate(&token).unwrap();
    assert_eq!(ctx.roles.len(), 2, "member implies reader: {:?}", ctx.roles);
    let (user, project) = (ctx.user_id.clone(), ctx.project().unwrap().to_owned());

    let member = role(&test, &root, "member").await;
    let grant = Grant {
        target: Target::Project(project.clone()),
        role_id: member,
        inherited: false,
    };
    assignments::revoke(&test.cloud, &root, Actor::User(user.clone()), grant.clone())
        .await
        .unwrap();
    assert!(is_unauthorized(identity.validate(&token)));
    assignments::grant(&test.cloud, &root, Actor::User(user.clone()), grant)
        .await
        .unwrap();
    identity.validate(&token).unwrap();

    let enabled = |enabled| ProjectChange {
        enabled: Some(enabled),
        ..Default::default()
    };
    projects::update(&test.cloud, &root, &project, enabled(false))
        .await
        .unwrap();
    assert!(is_unauthorized(identity.validate(&token)));
    projects::update(&test.cloud, &root, &project, enabled(true))
        .await
        .unwrap();
    identity.validate(&token).unwrap();

    users::update(&test.cloud, &root, &user, from(json!({"password": "new"})))
        .await
        .unwrap();
    assert!(is_unauthorized(identity.validate(&token)));

    let token = test.token("ann", "one", "member").await;
    users::update(&test.cloud, &root, &user, from(json!({"enabled": false})))
        .await
        .unwrap();
    users::update(&test.cloud, &root, &user, from(json!({"enabled": true})))
        .await
        .unwrap();
    assert!(
        is_unauthorized(identity.validate(&token)),
        "disabling a user ends its tokens for good"
    );
}

#[tokio::test]
async fn an_exchanged_token_ends_with_the_first_and_carries_its_chain() {
    let test = cloud().await;
    let first = log_in(
        &test.cloud,
        password("admin", "Default", ADMIN_PASSWORD, json!("unscoped")),
    )
    .await
    .unwrap();
    let identity = &test.cloud.identity;
    assert_eq!(identity.validate(&first).unwrap().scope, Scope::Unscoped);
    let exchange = json!({"identity": {"methods": ["token"], "token": {"id": first}}, "scope": {"system": {"all": true}}});
    let second = log_in(&test.cloud, exchange).await.unwrap();
    let (a, b) = (
        identity.claims(&first).unwrap(),
        identity.claims(&second).unwrap(),
    );
    assert_eq!(b.expires_at, a.expires_at);
    assert_eq!(b.parent_audit_id, Some(a.audit_id));
    assert_eq!(b.method_names(), ["password", "token"]);
    let ctx = identity.validate(&first).unwrap();
    tokens::revoke(&test.cloud, &ctx, &first).await.unwrap();
    assert!(is_unauthorized(identity.validate(&second)));
}

#[tokio::test]
async fn only_its_user_and_administrators_see_or_end_a_token() {
    let test = cloud().await;
    let (ann, bob) = (
        test.token("ann", "one", "member").await,
        test.token("bob", "two", "manager").await,
    );
    let ctx = test.cloud.identity.validate(&bob).unwrap();
    assert!(is_forbidden(tokens::inspect(&test.cloud, &ctx, &ann)));
    assert!(is_forbidden(tokens::revoke(&test.cloud, &ctx, &ann).await));
    assert!(tokens::inspect(&test.cloud, &admin(&test).await, &ann).is_ok());
}

#[tokio::test]
async fn application_credentials_open_their_roles_and_no_more() {
    let test = cloud().await;
    let ctx = test.context("ann", "one", "manager").await;
    let user = ctx.user_id.clone();
    let new = |value| from::<NewCredential>(value);
    let create = |value| credentials::create(&test.cloud, &ctx, &user, new(value));

    let (credential, secret) = create(json!({"name": "ci", "roles": [{"name": "reader"}]}))
        .await
        .unwrap();
    let proof = |secret: &str| {
        let proof = json!({"id": credential.id, "secret": secret});
        json!({"identity": {"methods": ["application_credential"], "application_credential": proof}})
    };
    assert!(is_unauthorized(log_in(&test.cloud, proof("wrong")).await));
    let token = log_in(&test.cloud, proof(secret.expose())).await.unwrap();
    let limited = test.cloud.identity.validate(&token).unwrap();
    assert_eq!(limited.roles, ["reader"]);
    assert_eq!(limited.scope, ctx.scope);

    // It makes no other credentials, leads to no other scope, and has no role that the user lacks.
    let more = credentials::create(&test.cloud, &limited, &user, new(json!({"name": "more"}))).await;
    assert!(is_forbidden(more.map(|_| ())));
    let wider = json!({"identity": {"methods": ["token"], "token": {"id": token}}, "scope": "unscoped"});
    assert!(is_unauthorized(log_in(&test.cloud, wider).await));
    assert!(
        create(json!({"name": "x", "roles": [{"name": "admin"}]}))
            .await
            .is_err()
    );
    assert!(create(json!({"name": "ci"})).await.is_err(), "the name is taken");
    assert!(
        create(json!({"name": "y", "access_rules": [{"path": "/"}]}))
            .await
            .is_err()
    );
    assert!(
        create(json!({"name": "z", "expires_at": "2001-01-01T00:00:00"}))
            .await
            .is_err()
    );

    credentials::delete(&test.cloud, &ctx, &user, &credential.id)
        .await
        .unwrap();
    assert!(is_unauthorized(test.cloud.identity.validate(&token)));
}

#[tokio::test]
async fn a_credential_has_no_role_that_its_user_lost() {
    let test = cloud().await;
    let root = admin(&test).await;
    let ctx = test.context("ann", "one", "member").await;
    let user = ctx.user_id.clone();
    let new = from::<NewCredential>(json!({"name": "ci", "secret": "chosen by the user"}));
    let (credential, _) = credentials::create(&test.cloud, &ctx, &user, new).await.unwrap();
    let proof = json!({"name": "ci", "user": {"id": user}, "secret": "chosen by the user"});
    let body = json!({"identity": {"methods": ["application_credential"], "application_credential": proof}});
    let token = log_in(&test.cloud, body).await.unwrap();
    let target = Target::Project(credential.project_id);
    let grant = Grant {
        target,
        role_id: role(&test, &root, "member").await,
        inherited: false,
    };
    assignments::revoke(&test.cloud, &root, Actor::User(user), grant)
        .await
        .unwrap();
    assert!(is_unauthorized(test.cloud.identity.validate(&token)));
}

#[tokio::test]
async fn a_manager_rules_its_domain_and_nothing_else() {
    let test = cloud().await;
    let (root, boss, acme) = acme(&test).await;
    let c = &test.cloud;
    let default_user = users::list(
        c,
        &root,
        users::Filter {
            name: Some("admin".into()),
            ..Default::default()
        },
    );
    let root_user = default_user.await.unwrap().remove(0);

    // Inside.
    let user = users::create(c, &boss, from(json!({"name": "u", "password": "p"})))
        .await
        .unwrap();
    assert_eq!(user.domain_id, acme);
    let project = projects::create(c, &boss, from(json!({"name": "p"})))
        .await
        .unwrap();
    let group = groups::create(c, &boss, from::<NewGroup>(json!({"name": "g"})))
        .await
        .unwrap();
    groups::add_member(c, &boss, &group.id, &user.id).await.unwrap();
    give(
        &test,
        &boss,
        Actor::Group(group.id.clone()),
        "member",
        Target::Project(project.id.clone()),
    )
    .await;
    let scope = json!({"project": {"id": project.id}});
    let token = log_in(c, password("u", "acme", "p", scope)).await.unwrap();
    assert!(c.identity.validate(&token).unwrap().has_role("member"));
    users::update(c, &boss, &user.id, from(json!({"description": "d"})))
        .await
        .unwrap();

    // Outside, and upwards.
    assert!(is_forbidden(
        users::create(c, &boss, from(json!({"name": "x", "domain_id": "default"}))).await
    ));
    assert!(is_forbidden(
        projects::create(c, &boss, from(json!({"name": "x", "domain_id": "default"}))).await
    ));
    assert!(is_forbidden(users::show(c, &boss, &root_user.id).await));
    assert!(is_forbidden(
        users::update(c, &boss, &root_user.id, from(json!({"password": "x"}))).await
    ));
    assert!(is_forbidden(users::delete(c, &boss, &root_user.id).await));
    assert!(is_forbidden(
        groups::add_member(c, &boss, &group.id, &root_user.id).await
    ));
    assert!(is_forbidden(
        domains::create(c, &boss, from::<NewDomain>(json!({"name": "x"}))).await
    ));
    assert!(is_forbidden(
        domains::update(c, &boss, &acme, DomainChange::default()).await
    ));
    let admin_role = role(&test, &root, "admin").await;
    for (actor, target) in [
        (Actor::User(boss.user_id.clone()), Target::Domain(acme.clone())),
        (Actor::User(user.id.clone()), Target::Project(project.id.clone())),
        (Actor::User(boss.user_id.clone()), Target::System),
    ] {
        let grant = Grant {
            target,
            role_id: admin_role.clone(),
            inherited: false,
        };
        assert!(is_forbidden(assignments::grant(c, &boss, actor, grant).await));
    }
    let member = Grant {
        target: Target::System,
        role_id: role(&test, &root, "member").await,
        inherited: false,
    };
    assert!(is_forbidden(
        assignments::grant(c, &boss, Actor::User(user.id.clone()), member).await
    ));
    assert!(
        users::list(c, &boss, users::Filter::default())
            .await
            .unwrap()
            .iter()
            .all(|u| u.domain_id == acme)
    );
    let seen = assignments::list(c, &boss, &Filter::default()).unwrap();
    assert_eq!(seen.len(), 2, "{seen:?}");

    // An administrator in its own domain is out of its reach, too: its password would be the key to the cloud.
    give(
        &test,
        &root,
        Actor::User(user.id.clone()),
        "admin",
        Target::Project(project.id.clone()),
    )
    .await;
    assert!(is_forbidden(
        users::update(c, &boss, &user.id, from(json!({"password": "mine"}))).await
    ));
    assert!(is_forbidden(users::delete(c, &boss, &user.id).await));
    assert!(is_forbidden(projects::delete(c, &boss, &project.id).await));
    give(
        &test,
        &root,
        Actor::Group(group.id.clone()),
        "admin",
        Target::Project(project.id.clone()),
    )
    .await;
    assert!(is_forbidden(
        groups::add_member(c, &boss, &group.id, &boss.user_id).await
    ));
}

#[tokio::test]
async fn a_role_on_a_project_reaches_nothing_else_in_identity() {
    let test = cloud().await;
    let c = &test.cloud;
    for role in ["reader", "member", "manager"] {
        let ctx = test.context("ann", "one", role).await;
        assert!(
            is_forbidden(users::list(c, &ctx, Default::default()).await),
            "{role}"
        );
        assert!(
            is_forbidden(users::create(c, &ctx, from(json!({"name": "x"}))).await),
            "{role}"
        );
        assert!(
            is_forbidden(projects::list(c, &ctx, Default::default()).await),
            "{role}"
        );
        assert!(
            is_forbidden(projects::create(c, &ctx, from::<NewProject>(json!({"name": "x"}))).await),
            "{role}"
        );
        assert!(is_forbidden(roles::list(c, &ctx, None).await), "{role}");
        assert!(
            is_forbidden(assignments::list(c, &ctx, &Filter::default())),
            "{role}"
        );
        projects::show(c, &ctx, ctx.project().unwrap()).await.unwrap();
        users::show(c, &ctx, &ctx.user_id).await.unwrap();
        assert_eq!(projects::of_user(c, &ctx, &ctx.user_id).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn the_last_administrator_cannot_lock_everyone_out() {
    let test = cloud().await;
    let root = admin(&test).await;
    let c = &test.cloud;
    assert!(is_forbidden(users::delete(c, &root, &root.user_id).await));
    assert!(is_forbidden(
        users::update(c, &root, &root.user_id, from(json!({"enabled": false}))).await
    ));
    assert!(is_forbidden(
        users::update(c, &root, &root.user_id, from(json!({"password": null}))).await
    ));
    let disabled = DomainChange {
        enabled: Some(false),
        ..Default::default()
    };
    assert!(is_forbidden(
        domains::update(c, &root, domains::DEFAULT, disabled).await
    ));
    // With a second one it may.
    let second = users::create(c, &root, from(json!({"name": "second", "password": "x"})))
        .await
        .unwrap();
    give(&test, &root, Actor::User(second.id), "admin", Target::System).await;
    users::update(
        c,
        &root,
        &root.user_id,
        from::<UserChange>(json!({"enabled": false})),
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn inherited_roles_reach_projects_below_and_show_in_effective_lists() {
    let test = cloud().await;
    let (root, _, acme) = acme(&test).await;
    let c = &test.cloud;
    let user = json!({"name": "u", "domain_id": acme, "password": "p"});
    let user = users::create(c, &root, from::<NewUser>(user)).await.unwrap();
    let project = |name: &str, parent: &str| {
        let new = json!({"name": name, "domain_id": acme, "parent_id": parent});
        projects::create(c, &root, from::<NewProject>(new))
    };
    let above = project("above", &acme).await.unwrap();
    let below = project("below", &above.id).await.unwrap();
    assert_eq!(above.parent_id, None);
    let target = Target::Project(above.id.clone());
    let grant = Grant {
        target,
        role_id: role(&test, &root, "reader").await,
        inherited: true,
    };
    assignments::grant(c, &root, Actor::User(user.id.clone()), grant)
        .await
        .unwrap();
    let on = |id: &str| password("u", "acme", "p", json!({"project": {"id": id}}));
    assert!(is_unauthorized(log_in(c, on(&above.id)).await));
    log_in(c, on(&below.id)).await.unwrap();
    let filter = Filter {
        user_id: Some(user.id),
        effective: true,
        include_names: true,
        ..Default::default()
    };
    let effective = assignments::list(c, &root, &filter).unwrap();
    assert_eq!(effective.len(), 1);
    assert_eq!(effective[0].target, Target::Project(below.id));
    assert_eq!(effective[0].names.as_ref().unwrap().role, "reader");
    assert!(
        is_forbidden(projects::delete(c, &root, &above.id).await),
        "there is a project below"
    );
}

#[tokio::test]
async fn a_domain_goes_with_all_that_is_in_it_once_it_is_disabled() {
    let test = cloud().await;
    let (root, boss, acme) = acme(&test).await;
    let c = &test.cloud;
    projects::create(c, &boss, from::<NewProject>(json!({"name": "p"})))
        .await
        .unwrap();
    assert!(is_forbidden(domains::delete(c, &root, &acme).await));
    let disabled = DomainChange {
        enabled: Some(false),
        ..Default::default()
    };
    domains::update(c, &root, &acme, disabled).await.unwrap();
    domains::delete(c, &root, &acme).await.unwrap();
    assert!(matches!(
        users::show(c, &root, &boss.user_id).await,
        Err(Error::NotFound { .. })
    ));
    let left = c.store.read(|conn| {
        let sql = "SELECT (SELECT count(*) FROM users) + (SELECT count(*) FROM role_assignments)";
        Ok::<i64, Error>(conn.query_row(sql, [], |row| row.get(0))?)
    });
    assert_eq!(
        left.await.unwrap(),
        1 + 2,
        "the administrator and its two assignments"
    );
}

#[tokio::test]
async fn own_passwords_change_with_the_old_one_alone() {
    let test = cloud().await;
    let root = admin(&test).await;
    let c = &test.cloud;
    let user = users::create(c, &root, from(json!({"name": "u", "password": "old"})))
        .await
        .unwrap();
    let change =
        |old: &str, new: &str| users::change_own_password(c, &user.id, Secret::new(old), Secret::new(new));
    assert!(is_unauthorized(change("wrong", "new").await));
    assert!(matches!(change("old", "old").await, Err(Error::BadRequest(_))));
    assert!(matches!(change("old", "").await, Err(Error::BadRequest(_))));
    change("old", "new").await.unwrap();
    assert!(is_unauthorized(
        log_in(c, password("u", "Default", "old", json!("unscoped"))).await
    ));
    log_in(c, password("u", "Default", "new", json!("unscoped")))
        .await
        .unwrap();
    // Test clouds want the latest two to differ.
    assert!(matches!(change("new", "old").await, Err(Error::BadRequest(_))));
    change("new", "newer").await.unwrap();
    change("newer", "old").await.unwrap();
    let kept = c.store.read(|conn| {
        let sql = "SELECT count(*) FROM password_history";
        Ok::<i64, Error>(conn.query_row(sql, [], |row| row.get(0))?)
    });
    assert_eq!(kept.await.unwrap(), 1);
    users::delete(c, &root, &user.id).await.unwrap();
    let kept = c.store.read(|conn| {
        let sql = "SELECT count(*) FROM password_history";
        Ok::<i64, Error>(conn.query_row(sql, [], |row| row.get(0))?)
    });
    assert_eq!(kept.await.unwrap(), 0);
}

#[tokio::test]
async fn kept_credentials_are_their_users_own_and_encrypted() {
    let test = cloud().await;
    let c = &test.cloud;
    let root = admin(&test).await;
    let (ann, bob) = (
        test.context("ann", "one", "member").await,
        test.context("bob", "two", "member").await,
    );
    let project = ann.project().unwrap().to_owned();
    let key = stored::create_ec2(c, &ann, &ann.user_id, &project).await.unwrap();
    assert!(is_not_found(stored::show(c, &bob, &key.id).await));
    assert!(is_not_found(stored::delete(c, &bob, &key.id).await));
    assert!(
        stored::list(c, &bob, Some(ann.user_id.clone()), None)
            .await
            .unwrap()
            .is_empty()
    );
    assert!(is_forbidden(
        stored::create_ec2(c, &bob, &ann.user_id, &project).await
    ));
    let foreign = bob.project().unwrap().to_owned();
    assert!(is_not_found(
        stored::create_ec2(c, &ann, &ann.user_id, &foreign).await
    ));
    let restricted = Context {
        application_credential: Some("x".into()),
        ..ann.clone()
    };
    assert!(is_forbidden(stored::show(c, &restricted, &key.id).await));
    assert_eq!(
        stored::show(c, &root, &key.id).await.unwrap().blob.expose(),
        key.blob.expose()
    );
    let sealed: Vec<u8> = c
        .store
        .read(|conn| Ok::<_, Error>(conn.query_row("SELECT sealed FROM credentials", [], |row| row.get(0))?))
        .await
        .unwrap();
    let secret: serde_json::Value = serde_json::from_str(key.blob.expose()).unwrap();
    let secret = secret["secret"].as_str().unwrap().as_bytes();
    assert!(!sealed.windows(secret.len()).any(|part| part == secret));
    users::delete(c, &root, &ann.user_id).await.unwrap();
    assert!(is_not_found(stored::show(c, &root, &key.id).await));
}

/// What the projection follows change by change is what it loads at once.
#[tokio::test]
async fn the_directory_in_memory_is_that_of_the_database() {
    let test = cloud().await;
    let (root, boss, acme) = acme(&test).await;
    let c = &test.cloud;
    let group = groups::create(c, &boss, from::<NewGroup>(json!({"name": "g"})))
        .await
        .unwrap();
    groups::add_member(c, &boss, &group.id, &boss.user_id)
        .await
        .unwrap();
    give(
        &test,
        &boss,
        Actor::Group(group.id.clone()),
        "reader",
        Target::Domain(acme),
    )
    .await;
    users::create(c, &root, from(json!({"name": "gone"})))
        .await
        .unwrap();
    let filter = users::Filter {
        name: Some("gone".into()),
        ..Default::default()
    };
    let gone = users::list(c, &root, filter).await.unwrap().remove(0);
    users::delete(c, &root, &gone.id).await.unwrap();

    let snapshot = |directory: &Directory| {
        let mut grants: Vec<_> = directory
            .all_grants()
            .map(|(a, g)| format!("{a:?} {g:?}"))
            .collect();
        let mut users: Vec<_> = directory
            .users
            .iter()
            .map(|(id, user)| format!("{id} {user:?}"))
            .collect();
        let mut members = directory.members(&group.id);
        grants.sort();
        users.sort();
        members.sort();
        (grants, users, members)
    };
    let followed = snapshot(&c.identity.directory());
    let identity = c.identity.clone();
    let loaded = c
        .store
        .read(move |conn| Directory::load(conn, &identity.root))
        .await
        .unwrap();
    assert_eq!(followed, snapshot(&loaded));
}
