//! Rights, names, and what goes with what.

use super::*;
use crate::testing::cloud;

fn object(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn kind<T>(result: Result<T>) -> Option<crate::error::Kind> {
    result.err().and_then(|error| error.kind())
}

#[tokio::test]
async fn a_namespace_and_all_that_is_in_it() {
    use crate::error::Kind::{Conflict, Forbidden, NotFound};
    let test = cloud().await;
    let c = &test.cloud;
    let admin = test.context("admin", "admin", "admin").await;
    let ann = test.context("ann", "one", "member").await;
    let document = object(json!({
        "namespace": "ns", "visibility": "public", "protected": true,
        "resource_type_associations": [{"name": "OS::Nova::Flavor", "prefix": "hw:"}],
        "properties": {"cores": {"title": "Cores", "type": "integer", "minimum": 1}},
        "objects": [{"name": "cpu", "properties": {"arch": {"title": "Arch", "type": "string"}}}],
        "tags": [{"name": "fast"}],
    }));
    assert_eq!(kind(create(c, &ann, document.clone()).await), Some(Forbidden));
    let made = create(c, &admin, document.clone()).await.unwrap();
    assert_eq!(kind(create(c, &admin, document).await), Some(Conflict));
    assert_eq!(show(c, &ann, "ns").await.unwrap(), made);
    assert_eq!(
        (made.objects.len(), made.properties.len(), made.tags.len()),
        (1, 1, 1)
    );
    assert_eq!(made.resource_types[0].prefix.as_deref(), Some("hw:"));
    // Protected, it loses nothing.
    assert_eq!(kind(delete(c, &admin, "ns").await), Some(Forbidden));
    assert_eq!(
        kind(remove_item(c, &admin, "ns", Kind::Tag, "fast").await),
        Some(Forbidden)
    );
    assert_eq!(
        kind(remove_items(c, &admin, "ns", Kind::Object).await),
        Some(Forbidden)
    );
    assert_eq!(
        kind(remove_association(c, &admin, "ns", "OS::Nova::Flavor").await),
        Some(Forbidden)
    );
    // Renamed and private, it keeps what it has, and others do not see it.
    let new = object(json!({"namespace": "other", "visibility": "private"}));
    assert_eq!(kind(update(c, &ann, "ns", new.clone()).await), Some(Forbidden));
    let changed = update(c, &admin, "ns", new).await.unwrap();
    assert_eq!((changed.properties.len(), changed.resource_types.len()), (1, 1));
    assert_eq!(kind(show(c, &ann, "other").await), Some(NotFound));
    assert_eq!(
        kind(list_items(c, &ann, "other", Kind::Tag).await),
        Some(NotFound)
    );
    assert!(list(c, &ann).await.unwrap().is_empty());
    assert_eq!(list(c, &admin).await.unwrap().len(), 1);
    assert_eq!(kind(show(c, &admin, "ns").await), Some(NotFound));
    delete(c, &admin, "other").await.unwrap();
    for table in ["metadef_namespaces", "metadef_items", "metadef_resource_types"] {
        let left = c.store.read(move |conn| {
            let sql = format!("SELECT count(*) FROM {table}");
            Ok::<i64, Error>(conn.query_row(&sql, [], |row| row.get(0))?)
        });
        assert_eq!(left.await.unwrap(), 0, "{table}");
    }
}

#[tokio::test]
async fn objects_properties_and_tags_come_change_and_go() {
    use crate::error::Kind::{BadRequest, Conflict, Forbidden, NotFound};
    let test = cloud().await;
    let c = &test.cloud;
    let admin = test.context("admin", "admin", "admin").await;
    let ann = test.context("ann", "one", "member").await;
    create(
        c,
        &admin,
        object(json!({"namespace": "ns", "visibility": "public"})),
    )
    .await
    .unwrap();
    let of = |of: Kind, name: &str| match of {
        Kind::Property => object(json!({"name": name, "title": "T", "type": "string", "enum": ["a"]})),
        Kind::Object => object(json!({"name": name, "description": "d", "required": []})),
        Kind::Tag => object(json!({"name": name})),
    };
    for one in Kind::ALL {
        assert_eq!(
            kind(add_item(c, &ann, "ns", one, of(one, "a")).await),
            Some(Forbidden)
        );
        let made = add_item(c, &admin, "ns", one, of(one, "a")).await.unwrap();
        assert_eq!(
            kind(add_item(c, &admin, "ns", one, of(one, "a")).await),
            Some(Conflict)
        );
        assert_eq!(show_item(c, &ann, "ns", one, "a").await.unwrap(), made);
        add_item(c, &admin, "ns", one, of(one, "b")).await.unwrap();
        assert_eq!(
            kind(update_item(c, &admin, "ns", one, "a", of(one, "b")).await),
            Some(Conflict)
        );
        update_item(c, &admin, "ns", one, "a", of(one, "c"))
            .await
            .unwrap();
        assert_eq!(kind(show_item(c, &admin, "ns", one, "a").await), Some(NotFound));
        remove_item(c, &admin, "ns", one, "c").await.unwrap();
        assert_eq!(kind(remove_item(c, &admin, "ns", one, "c").await), Some(NotFound));
        assert_eq!(list_items(c, &ann, "ns", one).await.unwrap().len(), 1);
        remove_items(c, &admin, "ns", one).await.unwrap();
        assert!(list_items(c, &ann, "ns", one).await.unwrap().is_empty());
    }
    let tags = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    set_tags(c, &admin, "ns", tags(&["a", "b"]), false).await.unwrap();
    assert_eq!(
        set_tags(c, &admin, "ns", tags(&["c"]), true).await.unwrap().len(),
        3
    );
    assert_eq!(
        set_tags(c, &admin, "ns", tags(&["a"]), false)
            .await
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        kind(set_tags(c, &admin, "ns", tags(&["x", "x"]), false).await),
        Some(Conflict)
    );
    assert_eq!(
        list_items(c, &ann, "ns", Kind::Tag).await.unwrap().len(),
        1,
        "all or none"
    );
    for (one, wrong) in [
        (Kind::Property, json!({"name": "x", "title": "T"})),
        (
            Kind::Property,
            json!({"name": "x", "title": "T", "type": "colour"}),
        ),
        (Kind::Property, json!({"name": "x", "type": "string"})),
        (
            Kind::Property,
            json!({"name": "x", "title": "T", "type": "string", "what": 1}),
        ),
        (Kind::Object, json!({"name": "x", "properties": [1]})),
        (Kind::Object, json!({"name": "x", "properties": {"p": 1}})),
        (Kind::Object, json!({"name": "x", "required": [1]})),
        (Kind::Tag, json!({"name": "x", "colour": "red"})),
        (Kind::Tag, json!({"name": "x/y"})),
        (Kind::Tag, json!({"name": ""})),
        (Kind::Tag, json!({"name": 7})),
        (Kind::Tag, json!({})),
        (Kind::Tag, json!({"name": "x".repeat(81)})),
    ] {
        let refused = add_item(c, &admin, "ns", one, object(wrong.clone())).await;
        assert_eq!(kind(refused), Some(BadRequest), "{wrong}");
    }
}

#[tokio::test]
async fn resource_types_are_known_by_name() {
    use crate::error::Kind::{Conflict, NotFound};
    let test = cloud().await;
    let c = &test.cloud;
    let admin = test.context("admin", "admin", "admin").await;
    let ann = test.context("ann", "one", "member").await;
    create(
        c,
        &admin,
        object(json!({"namespace": "ns", "visibility": "private"})),
    )
    .await
    .unwrap();
    let new = || object(json!({"name": "My::Type", "properties_target": "x"}));
    add_association(c, &admin, "ns", new()).await.unwrap();
    assert_eq!(
        kind(add_association(c, &admin, "ns", new()).await),
        Some(Conflict)
    );
    let names = |all: Vec<(String, i64)>| all.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(resource_types(c, &ann).await.unwrap()), RESOURCE_TYPES);
    assert!(names(resource_types(c, &admin).await.unwrap()).contains(&"My::Type".to_owned()));
    remove_association(c, &admin, "ns", "My::Type").await.unwrap();
    assert_eq!(
        kind(remove_association(c, &admin, "ns", "My::Type").await),
        Some(NotFound)
    );
    assert!(list_associations(c, &admin, "ns").await.unwrap().is_empty());
}
