//! Labels of metrics of traffic: what tells one series from another.

/// A label that a Telemetry may take away or add. Those that are always there have no name here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MetricLabel {
    /// The caller's namespace.
    SourceNamespace,
    /// The caller's workload.
    SourceWorkload,
    /// The workload that answers.
    DestinationWorkload,
    /// The route that matched.
    Route,
    /// What is spoken.
    Protocol,
    /// The gRPC status.
    GrpcCode,
    /// Why the mesh itself answered.
    Reason,
    /// Whether it travels by mesh TLS.
    Mtls,
    /// The request's method.
    Method,
    /// Where the endpoint runs.
    DestinationZone,
    /// Who calls from outside the mesh.
    Consumer,
}

impl MetricLabel {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::SourceNamespace,
        Self::SourceWorkload,
        Self::DestinationWorkload,
        Self::Route,
        Self::Protocol,
        Self::GrpcCode,
        Self::Reason,
        Self::Mtls,
        Self::Method,
        Self::DestinationZone,
        Self::Consumer,
    ];

    /// As metrics spell it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::SourceNamespace => "source_namespace",
            Self::SourceWorkload => "source_workload",
            Self::DestinationWorkload => "destination_workload",
            Self::Route => "route",
            Self::Protocol => "protocol",
            Self::GrpcCode => "grpc_code",
            Self::Reason => "reason",
            Self::Mtls => "mtls",
            Self::Method => "method",
            Self::DestinationZone => "destination_zone",
            Self::Consumer => "consumer",
        }
    }

    /// Whether metrics have it only where somebody asks for it.
    pub const fn can_be_added(self) -> bool {
        matches!(self, Self::Method | Self::DestinationZone | Self::Consumer)
    }

    /// Whether metrics have it unless somebody does without it.
    pub const fn can_be_dropped(self) -> bool {
        !self.can_be_added()
    }

    /// The label of that spelling.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|label| label.text() == text)
    }
}

/// Labels that are dropped or added; a bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MetricLabels(u16);

impl MetricLabels {
    /// Whether that one is.
    pub const fn has(self, label: MetricLabel) -> bool {
        self.0 & 1 << label as u8 != 0
    }

    /// Whether any label is added.
    pub const fn adds(self) -> bool {
        self.0 >> MetricLabel::Method as u8 != 0
    }

    /// As a number, which tells one selection from another.
    pub const fn bits(self) -> u16 {
        self.0
    }
}

impl FromIterator<MetricLabel> for MetricLabels {
    fn from_iter<T: IntoIterator<Item = MetricLabel>>(labels: T) -> Self {
        Self(labels.into_iter().fold(0, |bits, label| bits | 1 << label as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_a_bit_each() {
        // Aim: every label is found by its spelling and in a selection of itself alone, and is either dropped or added.
        for label in MetricLabel::ALL {
            let only: MetricLabels = std::iter::once(label).collect();
            assert_eq!(MetricLabel::parse(label.text()), Some(label));
            assert_eq!(MetricLabel::ALL.into_iter().filter(|other| only.has(*other)).collect::<Vec<_>>(), [label]);
            assert_eq!(only.adds(), label.can_be_added());
            assert_ne!(label.can_be_added(), label.can_be_dropped());
        }
        assert!(!MetricLabels::default().adds());
    }
}
