//! Which kinds of objects are read, and by which of their versions.

/// A kind that is read.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub(super) enum Kind {
    Namespace,
    Service,
    EndpointSlice,
    Secret,
    Ingress,
    GatewayClass,
    Gateway,
    HttpRoute,
    GrpcRoute,
    TlsRoute,
    TcpRoute,
    ReferenceGrant,
}

/// Group of the Gateway API.
pub(super) const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

impl Kind {
    pub(super) const ALL: [Self; 12] = [
        Self::Namespace,
        Self::Service,
        Self::EndpointSlice,
        Self::Secret,
        Self::Ingress,
        Self::GatewayClass,
        Self::Gateway,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TlsRoute,
        Self::TcpRoute,
        Self::ReferenceGrant,
    ];

    /// Group, kind, the word of its address, and the versions that are understood, best first.
    pub(super) fn wire(self) -> (&'static str, &'static str, &'static str, &'static [&'static str]) {
        match self {
            Self::Namespace => ("", "Namespace", "namespaces", &["v1"]),
            Self::Service => ("", "Service", "services", &["v1"]),
            Self::EndpointSlice => ("discovery.k8s.io", "EndpointSlice", "endpointslices", &["v1"]),
            Self::Secret => ("", "Secret", "secrets", &["v1"]),
            Self::Ingress => ("networking.k8s.io", "Ingress", "ingresses", &["v1"]),
            Self::GatewayClass => (GATEWAY_GROUP, "GatewayClass", "gatewayclasses", &["v1", "v1beta1"]),
            Self::Gateway => (GATEWAY_GROUP, "Gateway", "gateways", &["v1", "v1beta1"]),
            Self::HttpRoute => (GATEWAY_GROUP, "HTTPRoute", "httproutes", &["v1", "v1beta1"]),
            Self::GrpcRoute => (GATEWAY_GROUP, "GRPCRoute", "grpcroutes", &["v1", "v1alpha2"]),
            Self::TlsRoute => (GATEWAY_GROUP, "TLSRoute", "tlsroutes", &["v1", "v1alpha3", "v1alpha2"]),
            Self::TcpRoute => (GATEWAY_GROUP, "TCPRoute", "tcproutes", &["v1", "v1alpha2"]),
            Self::ReferenceGrant => (GATEWAY_GROUP, "ReferenceGrant", "referencegrants", &["v1", "v1beta1"]),
        }
    }

    /// Whether a cluster may be without it: the Gateway API is installed by people.
    pub(super) fn optional(self) -> bool {
        self.wire().0 == GATEWAY_GROUP
    }

    /// The word for people.
    pub(super) fn word(self) -> &'static str {
        self.wire().1
    }
}
