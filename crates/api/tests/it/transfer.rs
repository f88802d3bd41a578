//! Applications that are carried from one platform to another, and what is refused on the way.

use crate::platform::{Platform, WEB, code};
use arco_api::client::{ClientError, ExecCall};
use arco_api::wire::{
    CarriedApplication, ExportRequest, Frame, ImportAction, ImportRequest, ImportResult, RouteRequest, SecretText,
    SpecPatch,
};
use arco_model::artifact::{Descriptor, Digest, ImageConfig, Layer};
use arco_model::component::{Component, Power, Revision};
use arco_model::secret::SecretVersion;
use arco_model::spec::files::FileSpec;
use arco_model::spec::{ComponentKind, VolumeSpec};
use arco_model::storage::{AccessMode, VolumeFacts};
use arco_store::blob::{SharedBlobs, content_path};
use arco_store::images::{Image, Images, LAYER_GZIP_TYPE};
use arco_store::sql::{Query, RouteRow};
use futures_util::TryStreamExt as _;

const SECRET: &str = "hunter2-hunter2";
const HASH: &str = "pbkdf2-sha256$1000$00112233445566778899aabbccddeeff$00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn key(digit: &str) -> Option<SecretText> {
    Some(SecretText(format!("archive {}", digit.repeat(64))))
}

fn file() -> FileSpec {
    FileSpec { path: "/etc/a".to_owned(), content: Some("a=1".to_owned()), secret: None, mode: None }
}

/// A platform with `shop/web`: an image, a secret, a variable, a configuration file, a route with a password.
async fn with_shop() -> Platform {
    with_shop_of(SECRET).await
}

async fn with_shop_of(secret: &str) -> Platform {
    let platform = Platform::start().await;
    let patch = SpecPatch {
        env: [("LEVEL".to_owned(), Some("2".to_owned()))].into(),
        secrets: [("TOKEN".to_owned(), Some(SecretText(secret.to_owned())))].into(),
        files: [("/etc/a".to_owned(), Some(file()))].into(),
        ..SpecPatch::default()
    };
    let component = platform.running(WEB, patch).await;
    let blobs: SharedBlobs = platform.blobs.clone();
    let layer = bytes::Bytes::from_static(b"a layer");
    let digest = Digest::of(&layer);
    blobs.put_bytes(&content_path(&digest), layer.clone()).await.unwrap();
    let blob = Descriptor { media_type: LAYER_GZIP_TYPE.to_owned(), digest: digest.clone(), size: layer.len() as u64 };
    let image = Image { layers: vec![Layer { blob, diff_id: digest }], config: ImageConfig::default() };
    let images = Images::new(platform.metadata.clone(), blobs);
    let artifact = images.write("default/shop/web", &image).await.unwrap();
    let id = component.desired_revision.unwrap();
    let change = |it: &mut Revision| {
        it.artifact = artifact.clone();
        true
    };
    platform.metadata.modify(id.as_str(), change).await.unwrap().unwrap();
    let route: RouteRequest = serde_json::from_value(serde_json::json!({
        "hosts": ["shop.test"], "basic_auth": { "users": { "ada": HASH } },
    }))
    .unwrap();
    platform.client.add_route("default", WEB, &route).await.unwrap();
    platform
}

async fn export(platform: &Platform) -> CarriedApplication {
    platform.client.export("default", "shop", &ExportRequest { key: key("7") }).await.unwrap()
}

fn request(application: &CarriedApplication) -> ImportRequest {
    ImportRequest { archive: Digest::of(b"archive"), key: key("7"), application: application.clone() }
}

async fn import(platform: &Platform, request: &ImportRequest, dry_run: bool) -> Result<ImportResult, ClientError> {
    platform.client.import("default", "shop", request, dry_run).await
}

async fn carry_blobs(from: &Platform, into: &Platform, application: &CarriedApplication) {
    for blob in application.components.iter().flat_map(|it| &it.blobs) {
        let digest = blob.digest.as_str();
        let pieces = from.client.blob("default", digest).await.unwrap().try_collect::<Vec<_>>().await.unwrap();
        let content = pieces.concat();
        assert_eq!(content.len() as u64, blob.size);
        into.client.put_blob("default", digest, blob.size, std::io::Cursor::new(content)).await.unwrap();
    }
}

fn actions(result: &ImportResult) -> Vec<ImportAction> {
    result.components.iter().map(|it| it.action).collect()
}

#[tokio::test]
async fn an_application_arrives_whole_and_once() {
    let (from, into) = (with_shop().await, Platform::start().await);
    let application = export(&from).await;
    let text = serde_json::to_string(&application).unwrap();
    assert!(!text.contains(SECRET) && !text.contains(HASH), "{text}");
    assert_eq!(code(from.client.export("default", "shop", &ExportRequest::default()).await), "passphrase_missing");
    let request = request(&application);

    // Looking changes nothing; without its blobs it is not made.
    assert_eq!(actions(&import(&into, &request, true).await.unwrap()), [ImportAction::Create]);
    assert_eq!(code(import(&into, &request, false).await), "not_found");
    assert!(into.client.component("default", WEB).await.is_err());

    carry_blobs(&from, &into, &application).await;
    let made = import(&into, &request, false).await.unwrap();
    assert_eq!((actions(&made), made.notes.as_slice()), (vec![ImportAction::Create], &[][..]));
    let component: Component = into.component(WEB).await;
    assert_eq!((component.power, component.arriving.as_ref()), (Power::Off, Some(&request.archive)));
    let (there, here) = (from.component(WEB).await, into.desired(&component).await);
    assert_eq!((&component.spec, here.artifact.digest), (&there.spec, from.desired(&there).await.artifact.digest));
    let routes = into.metadata.list::<RouteRow>(&Query::tag(component.id.as_str())).await.unwrap().items;
    let auth = routes[0].value.route.basic_auth.clone().unwrap();
    assert_eq!((routes.len(), routes[0].value.host.as_str(), auth.users["ada"].as_str()), (1, "shop.test", HASH));

    // The secret opens here; it is sealed with another key.
    let argv = ["true".to_owned()];
    let call = ExecCall {
        tenant: "default",
        name: WEB,
        one_off: true,
        argv: &argv,
        terminal: None,
        input: false,
        instance: None,
        place: 0,
    };
    let (_sender, mut receiver) = into.client.exec(&call).await.unwrap();
    while let Some(frame) = receiver.next().await {
        if let Frame::Control(_) = frame.unwrap() {
            break;
        }
    }
    assert_eq!(into.orchestrator.ran.lock().unwrap()[0].env["TOKEN"], SECRET);
    let secrets = into.metadata.list::<SecretVersion>(&Query::parent(component.id.as_str())).await.unwrap().items;
    assert_eq!(secrets.len(), 1);

    // Again, before somebody said that it is whole: it goes on. Another archive does not.
    assert_eq!(actions(&import(&into, &request, false).await.unwrap()), [ImportAction::Resume]);
    let other = ImportRequest { archive: Digest::of(b"other"), ..request.clone() };
    assert_eq!(code(import(&into, &other, false).await), "component_differs");
    assert_eq!(
        code(into.client.export("default", "shop", &ExportRequest { key: key("7") }).await),
        "import_unfinished"
    );
    into.client.power("default", WEB, "start").await.unwrap();
    assert_eq!(into.component(WEB).await.power, Power::On);
    for request in [&request, &other] {
        let again = import(&into, request, false).await.unwrap();
        assert_eq!((actions(&again), again.notes.as_slice()), (vec![ImportAction::Same], &[][..]));
    }
    assert_eq!(into.metadata.list::<Revision>(&Query::default()).await.unwrap().items.len(), 1);
    assert_eq!(into.metadata.list::<RouteRow>(&Query::default()).await.unwrap().items.len(), 1);

    assert_eq!(into.component(WEB).await.spec.files, [file()]);

    // What was changed here is not changed back.
    let patch = SpecPatch { env: [("LEVEL".to_owned(), Some("3".to_owned()))].into(), ..SpecPatch::default() };
    into.client.patch("default", WEB, &patch).await.unwrap();
    let looked = import(&into, &request, true).await.unwrap();
    assert_eq!(
        (looked.components[0].action, looked.components[0].fields.join(" ")),
        (ImportAction::Differs, "env.LEVEL".to_owned())
    );
    assert_eq!(code(import(&into, &request, false).await), "component_differs");
    assert_eq!(into.component(WEB).await.spec.env["LEVEL"], "3");

    // One that goes is not here.
    into.client.delete_component("default", WEB, false).await.unwrap();
    for dry_run in [true, false] {
        assert_eq!(code(import(&into, &request, dry_run).await), "being_deleted");
    }
}

#[tokio::test]
async fn what_an_enemy_wrote_is_refused() {
    let (from, into) = (with_shop().await, Platform::start().await);
    let application = export(&from).await;
    carry_blobs(&from, &into, &application).await;
    let whole = request(&application);
    type Twist = fn(&mut ImportRequest);
    let layer = |it: &mut ImportRequest| {
        it.application.components[0].revision.as_mut().unwrap().artifact = Digest::of(b"a layer")
    };
    let rows: [(&str, Twist, &str); 12] = [
        ("no key", |it| it.key = None, "passphrase_missing"),
        ("another key", |it| it.key = key("8"), "passphrase_wrong"),
        ("a key that is none", |it| it.key = Some(SecretText("archive 1".into())), "key_invalid"),
        ("a secret of another version", |it| it.application.components[0].secrets[0].version = 9, "archive_invalid"),
        (
            "a secret under another name",
            |it| {
                let component = &mut it.application.components[0];
                let version = component.spec.secrets.remove("TOKEN").unwrap();
                component.spec.secrets.insert("OTHER".into(), version);
                component
                    .secrets
                    .push(arco_api::wire::CarriedSecret { name: "OTHER".into(), ..component.secrets[0].clone() });
            },
            "passphrase_wrong",
        ),
        (
            "a component twice",
            |it| it.application.components.push(it.application.components[0].clone()),
            "archive_invalid",
        ),
        ("no component", |it| it.application.components.clear(), "archive_invalid"),
        ("a number beyond belief", |it| it.application.components[0].generation = u64::MAX, "archive_invalid"),
        ("revision 0", |it| it.application.components[0].revision.as_mut().unwrap().number = 0, "archive_invalid"),
        (
            "a variable of the platform",
            |it| {
                let spec = &mut it.application.components[0].revision.as_mut().unwrap().spec;
                spec.env.insert("ARCO_INSTANCE".into(), "x".into());
            },
            "env_name_reserved",
        ),
        ("a layer as an image", layer, "image_invalid"),
        ("two hosts", |it| it.application.components[0].routes[0].route.hosts.push("b.test".into()), "archive_invalid"),
    ];
    for (what, twist, refused) in rows {
        let mut request = whole.clone();
        twist(&mut request);
        assert_eq!(code(import(&into, &request, false).await), refused, "{what}");
    }
    let elsewhere = into.client.import("default", "other", &whole, false).await;
    assert_eq!(code(elsewhere), "archive_invalid");
    let digest = Digest::of(b"expected");
    let wrong = into.client.put_blob("default", digest.as_str(), 5, std::io::Cursor::new(b"other".to_vec())).await;
    assert_eq!(code(wrong), "blob_differs");
    assert!(!into.client.has_upload("default", digest.as_str()).await.unwrap());
    assert!(into.client.component("default", WEB).await.is_err(), "nothing was made");
}

#[tokio::test]
async fn a_secret_of_the_same_version_with_another_value_is_another_one() {
    let (from, into) = (with_shop().await, with_shop_of("swordfish").await);
    let request = request(&export(&from).await);
    let same = import(&from, &request, true).await.unwrap();
    assert_eq!((actions(&same), same.components[0].fields.is_empty()), (vec![ImportAction::Same], true));
    let looked = import(&into, &request, true).await.unwrap();
    assert_eq!(
        (actions(&looked), looked.components[0].fields.join(" ")),
        (vec![ImportAction::Differs], "secrets.TOKEN".to_owned())
    );
    carry_blobs(&from, &into, &request.application).await;
    let refused = import(&into, &request, false).await.unwrap_err();
    assert_eq!(refused.body().code, "component_differs");
    let said = format!("{refused:?}");
    assert!(said.contains("secrets.TOKEN") && !said.contains("swordfish") && !said.contains(SECRET), "{said}");
}

#[tokio::test]
async fn only_administrators_carry() {
    let platform = with_shop().await;
    let application = export(&platform).await;
    let operator = platform.client_of("ada", "operator", &["default"]);
    assert_eq!(code(operator.export("default", "shop", &ExportRequest { key: key("7") }).await), "role_denied");
    assert_eq!(code(operator.import("default", "shop", &request(&application), true).await), "role_denied");
    let digest = application.components[0].blobs[0].digest.as_str();
    assert_eq!(code(operator.blob("default", digest).await.map(drop)), "role_denied");
    let sent = operator.put_blob("default", digest, 0, std::io::Cursor::new(Vec::new())).await;
    assert_eq!(code(sent), "role_denied");
}

#[tokio::test]
async fn a_host_that_leads_elsewhere_is_told_and_left() {
    let (from, into) = (with_shop().await, Platform::start().await);
    let other = ("other", "site");
    into.running(other, SpecPatch::default()).await;
    let mut ids = Vec::new();
    for number in 0..7 {
        let path = if number == 0 { "/".to_owned() } else { format!("/api{number}") };
        let paths = serde_json::json!([{ "prefix": path }]);
        let route: RouteRequest =
            serde_json::from_value(serde_json::json!({ "hosts": ["shop.test"], "paths": paths })).unwrap();
        from.client.add_route("default", WEB, &route).await.unwrap();
        ids.push(into.client.add_route("default", other, &route).await.unwrap()[0].id.clone().unwrap());
    }
    let application = export(&from).await;
    carry_blobs(&from, &into, &application).await;
    for dry_run in [true, false] {
        let notes = import(&into, &request(&application), dry_run).await.unwrap().notes;
        // One for all of a component, with what tells the routes apart.
        assert!(notes.len() == 1 && notes[0].contains("and 2 more"), "{notes:?}");
        assert_eq!(notes[0].matches("`shop.test` (").count(), 5, "{notes:?}");
        assert!(notes[0].contains("/api"), "{notes:?}");
    }
    // When they are free, the next import makes them.
    for id in &ids {
        into.client.delete_route("default", other, id).await.unwrap();
    }
    assert!(import(&into, &request(&application), false).await.unwrap().notes.is_empty());
    let component = into.component(WEB).await;
    assert_eq!(into.metadata.list::<RouteRow>(&Query::tag(component.id.as_str())).await.unwrap().items.len(), 7);
}

#[tokio::test]
async fn a_class_that_is_not_here_is_left_out_and_told() {
    let (from, into) = (with_shop().await, Platform::start().await);
    let mut application = export(&from).await;
    let volume = |name: &str, class: &str| -> VolumeSpec {
        let it = serde_json::json!({ "name": name, "path": format!("/{name}"), "class": class });
        serde_json::from_value(it).unwrap()
    };
    let volumes = vec![volume("a", "none"), volume("b", "fast")];
    let component = &mut application.components[0];
    component.revision.as_mut().unwrap().spec.volumes.clone_from(&volumes);
    component.spec.volumes = volumes;
    carry_blobs(&from, &into, &application).await;
    let made = import(&into, &request(&application), false).await.unwrap();
    assert!(made.notes.len() == 1 && made.notes[0].contains("`none`"), "{:?}", made.notes);
    let component = into.component(WEB).await;
    let revision = into.desired(&component).await;
    for spec in [&component.spec, &revision.spec] {
        let classes: Vec<_> = spec.volumes.iter().map(|it| it.class.as_deref()).collect();
        assert_eq!(classes, [None, Some("fast")]);
    }
    let again = import(&into, &request(&application), false).await.unwrap();
    assert_eq!(actions(&again), [ImportAction::Resume], "it is still the archive's");
}

/// Makes `shop/web` stateful, with a volume of its own at each of so many places, of which one is asked for.
async fn scale_down_from(platform: &Platform, places: u32) {
    let component = platform.component(WEB).await;
    let data: VolumeSpec =
        serde_json::from_value(serde_json::json!({ "name": "data", "path": "/data", "kind": "local" })).unwrap();
    let change = |it: &mut Component| {
        (it.spec.kind, it.spec.volumes) = (ComponentKind::Stateful, vec![data.clone()]);
        true
    };
    platform.metadata.modify(component.id.as_str(), change).await.unwrap().unwrap();
    let change = |it: &mut Revision| {
        (it.spec.kind, it.spec.volumes) = (ComponentKind::Stateful, vec![data.clone()]);
        true
    };
    platform.metadata.modify(component.desired_revision.unwrap().as_str(), change).await.unwrap().unwrap();
    let held = |place| VolumeFacts {
        component: component.id.clone(),
        volume: data.name.clone(),
        place: Some(place),
        class: "fast".to_owned(),
        access: vec![AccessMode::ReadWriteOnce],
        size_bytes: 1 << 20,
        used_bytes: None,
    };
    *platform.orchestrator.volumes.lock().unwrap() = (0..places).map(held).collect();
}

#[tokio::test]
async fn places_that_a_component_was_scaled_down_from_travel_too() {
    let (from, into) = (with_shop().await, Platform::start().await);
    scale_down_from(&from, 3).await;
    let application = export(&from).await;
    let component = &application.components[0];
    let contents: Vec<_> = component.contents().map(|(it, place)| (it.name.to_string(), place)).collect();
    assert_eq!(contents, [0, 1, 2].map(|place| ("data".to_owned(), place)));

    carry_blobs(&from, &into, &application).await;
    import(&into, &request(&application), false).await.unwrap();
    let argv = ["tar".to_owned()];
    let reach = async |platform: &Platform, place: u32| {
        let (tenant, terminal, instance) = ("default", None, None);
        let call = ExecCall { tenant, name: WEB, one_off: true, argv: &argv, terminal, input: false, instance, place };
        platform.client.exec(&call).await.map(drop)
    };
    for platform in [&from, &into] {
        reach(platform, 2).await.unwrap();
        assert_eq!(code(reach(platform, 3).await), "exec_invalid");
    }
    // When it is whole, what is there counts, and here the archive's content never came.
    into.client.power("default", WEB, "stop").await.unwrap();
    assert_eq!(into.component(WEB).await.arriving_places, 0);
    assert_eq!(code(reach(&into, 1).await), "exec_invalid");

    let mut many = request(&application);
    many.application.components[0].places = 101;
    assert_eq!(code(import(&into, &many, true).await), "archive_invalid");
}
