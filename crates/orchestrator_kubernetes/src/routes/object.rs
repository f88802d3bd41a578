//! Objects of the cluster, cut down to what is read of them; the rest is forgotten as they come in.
//!
//! Texts that the API limits to a list stay texts: a value of a later version is refused where it is used, by name.

use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Labels, annotations and the like.
pub(super) type Words = BTreeMap<String, String>;

macro_rules! objects {
    ($($(#[$doc:meta])* $name:ident { $($(#[$at:meta])* $field:ident: $kind:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        pub(super) struct $name { $($(#[$at])* pub(super) $field: $kind,)* }
    )*};
}

objects! {
    // --- Service, EndpointSlice -------------------------------------------------------------------------------------
    ServiceSpec { r#type: String, ports: Vec<ServicePort>, }
    ServicePort { name: String, port: u16, protocol: Option<String>, app_protocol: String, }
    /// An EndpointSlice has no spec.
    SliceBody { address_type: String, endpoints: Vec<SliceEndpoint>, ports: Vec<SlicePort>, }
    SliceEndpoint { addresses: Vec<String>, conditions: SliceConditions, target_ref: Option<TargetRef>, }
    SliceConditions { ready: Option<bool>, serving: Option<bool>, terminating: Option<bool>, }
    TargetRef { uid: String, }
    SlicePort { name: Option<String>, port: Option<u16>, }

    // --- Ingress ----------------------------------------------------------------------------------------------------
    IngressSpec {
        ingress_class_name: Option<String>,
        default_backend: Option<IngressBackend>,
        tls: Vec<IngressTls>,
        rules: Vec<IngressRule>,
    }
    IngressTls { hosts: Vec<String>, secret_name: String, }
    IngressRule { host: String, http: IngressPaths, }
    IngressPaths { paths: Vec<IngressPath>, }
    IngressPath { path: String, path_type: String, backend: IngressBackend, }
    IngressBackend { service: Option<IngressService>, }
    IngressService { name: String, port: IngressPort, }
    IngressPort { name: String, number: u16, }

    // --- Gateway API ------------------------------------------------------------------------------------------------
    ClassSpec { controller_name: String, parameters_ref: Option<Value>, }
    GatewaySpec {
        gateway_class_name: String,
        listeners: Vec<Listener>,
        tls: Option<GatewayTls>,
        addresses: Vec<AskedAddress>,
        infrastructure: Infrastructure,
    }
    /// Settings of a Gateway in words of somebody's own.
    Infrastructure { parameters_ref: Option<Value>, }
    GatewayTls { frontend: Frontend, }
    /// How clients are asked for certificates: on every port, and on some.
    Frontend { default: FrontendTls, per_port: Vec<PortTls>, }
    PortTls { port: u16, tls: FrontendTls, }
    FrontendTls { validation: Option<Value>, }
    AskedAddress { value: String, }
    Listener {
        name: String,
        hostname: String,
        port: u16,
        protocol: String,
        tls: Option<ListenerTls>,
        allowed_routes: AllowedRoutes,
    }
    ListenerTls {
        mode: Option<String>,
        certificate_refs: Vec<ObjectRef>,
        /// Where definitions before 1.4 asked for certificates of clients.
        frontend_validation: Option<Value>,
    }
    AllowedRoutes { namespaces: AllowedNamespaces, kinds: Vec<GroupKind>, }
    AllowedNamespaces { from: Option<String>, selector: Selector, }
    Selector { match_labels: Words, match_expressions: Vec<Requirement>, }
    Requirement { key: String, operator: String, values: Vec<String>, }
    GroupKind { group: Option<String>, kind: String, }
    ObjectRef { group: Option<String>, kind: Option<String>, name: String, namespace: Option<String>, port: Option<u16>, }
    ParentRef {
        group: Option<String>,
        kind: Option<String>,
        namespace: Option<String>,
        name: String,
        section_name: Option<String>,
        port: Option<u16>,
    }
    /// HTTPRoute, GRPCRoute, TLSRoute and TCPRoute alike.
    RouteSpec { parent_refs: Vec<ParentRef>, hostnames: Vec<String>, rules: Vec<RouteRule>, }
    RouteRule {
        matches: Vec<RouteMatch>,
        filters: Vec<Filter>,
        backend_refs: Vec<BackendRef>,
        timeouts: RuleTimeouts,
        session_persistence: Option<SessionPersistence>,
    }
    RuleTimeouts { request: Option<String>, backend_request: Option<String>, }
    SessionPersistence {
        session_name: Option<String>,
        r#type: Option<String>,
        absolute_timeout: Option<String>,
        cookie_config: CookieConfig,
    }
    CookieConfig { lifetime_type: Option<String>, }
    /// `method` is a text for HTTP and an object for gRPC.
    RouteMatch {
        path: Option<PathMatch>,
        headers: Vec<NamedMatch>,
        query_params: Vec<NamedMatch>,
        method: Option<Value>,
    }
    PathMatch { r#type: Option<String>, value: Option<String>, }
    NamedMatch { r#type: Option<String>, name: String, value: String, }
    GrpcMethod { r#type: Option<String>, service: Option<String>, method: Option<String>, }
    BackendRef {
        group: Option<String>,
        kind: Option<String>,
        name: String,
        namespace: Option<String>,
        port: Option<u16>,
        weight: Option<u32>,
        filters: Vec<Value>,
    }
    Filter {
        r#type: String,
        request_header_modifier: Option<Headers>,
        response_header_modifier: Option<Headers>,
        request_redirect: Option<RedirectFilter>,
        url_rewrite: Option<RewriteFilter>,
        request_mirror: Option<MirrorFilter>,
        cors: Option<CorsFilter>,
    }
    Headers { set: Vec<NamedValue>, add: Vec<NamedValue>, remove: Vec<String>, }
    NamedValue { name: String, value: String, }
    RedirectFilter {
        scheme: Option<String>,
        hostname: Option<String>,
        path: Option<NewPath>,
        port: Option<u16>,
        status_code: Option<u16>,
    }
    RewriteFilter { hostname: Option<String>, path: Option<NewPath>, }
    NewPath { r#type: String, replace_full_path: Option<String>, replace_prefix_match: Option<String>, }
    MirrorFilter { backend_ref: BackendRef, percent: Option<u32>, fraction: Option<Fraction>, }
    Fraction { numerator: u32, denominator: Option<u32>, }
    CorsFilter {
        allow_origins: Vec<String>,
        allow_methods: Vec<String>,
        allow_headers: Vec<String>,
        expose_headers: Vec<String>,
        allow_credentials: Option<bool>,
        max_age: Option<u32>,
    }
    GrantSpec { from: Vec<GrantFrom>, to: Vec<GrantTo>, }
    GrantFrom { group: String, kind: String, namespace: String, }
    GrantTo { group: String, kind: String, name: Option<String>, }
}

impl GatewaySpec {
    /// Whether clients of a listener with TLS must, or may, show a certificate.
    pub(super) fn asks_clients(&self, listener: &Listener) -> bool {
        let of_port = self.tls.as_ref().and_then(|it| {
            let by_port = it.frontend.per_port.iter().find(|it| it.port == listener.port);
            by_port.map_or(&it.frontend.default, |it| &it.tls).validation.as_ref()
        });
        of_port.is_some() || listener.tls.as_ref().is_some_and(|it| it.frontend_validation.is_some())
    }
}

impl BackendRef {
    /// The same as a reference.
    pub(super) fn object(&self) -> ObjectRef {
        ObjectRef {
            group: self.group.clone(),
            kind: self.kind.clone(),
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            port: self.port,
        }
    }
}
