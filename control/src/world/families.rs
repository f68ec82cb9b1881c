//! The address families that a Service asks for.

use std::net::IpAddr;

use super::door::Fields;

/// Address families of a Service (`ipFamilies`, `ipFamilyPolicy`). Of Kubernetes' three policies two mean the same here: the mesh
/// always has both families.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Families {
    /// Either; what a Service gets that says nothing.
    #[default]
    Both,
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
}

impl Families {
    /// Whether an address is of one of these families.
    pub const fn has(self, address: &IpAddr) -> bool {
        match self {
            Self::Both => true,
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }

    /// Reads the two fields of a Service with these addresses of its own. A field left out means what Kubernetes makes of it; where
    /// both are, the chosen addresses say it.
    pub(super) fn read(fields: &mut Fields<'_>, chosen: &[IpAddr]) -> Self {
        let listed = fields.get("ipFamilies");
        let policy = fields.get("ipFamilyPolicy");
        let single =
            policy.as_ref().and_then(|at| at.word(&[("SingleStack", true), ("PreferDualStack", false), ("RequireDualStack", false)]));
        let words: Vec<Self> =
            listed.iter().flat_map(|at| at.list(2)).filter_map(|at| at.word(&[("IPv4", Self::V4), ("IPv6", Self::V6)])).collect();
        let families = match (single, words.as_slice()) {
            (Some(false), _) => Self::Both,
            (Some(true) | None, [one]) => *one,
            (None, []) => Self::of(chosen).unwrap_or_default(),
            (Some(true), []) => Self::of(chosen).filter(|families| *families != Self::Both).unwrap_or(Self::V4),
            (Some(true), [first, ..]) => {
                if let Some(at) = &listed {
                    at.error("SingleStack allows one family only", "remove one of the two, or use PreferDualStack");
                }
                *first
            }
            (None, [..]) => Self::Both,
        };
        if let (Some(at), Some(wrong)) = (listed.or(policy), chosen.iter().find(|address| !families.has(address))) {
            at.error(format!("the Service's own address {wrong} is of another family"), "correct one of the two");
        }
        families
    }

    fn of(chosen: &[IpAddr]) -> Option<Self> {
        match (chosen.iter().any(IpAddr::is_ipv4), chosen.iter().any(IpAddr::is_ipv6)) {
            (false, false) => None,
            (true, true) => Some(Self::Both),
            (true, false) => Some(Self::V4),
            (false, true) => Some(Self::V6),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Allocations, ObjectKey, World, WorldSettings};
    use crate::source::parse;
    use crate::world::{Change, Kind, Origin};

    /// Families of the addresses of a Service with that spec, whether they are in range, and what is said.
    fn placed(spec: &str) -> (String, Vec<String>) {
        let text =
            format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: a}}\nspec: {{{spec}, ports: [{{port: 80}}]}}\n");
        let mut world = World::new(WorldSettings::default(), Allocations::default());
        let candidate = parse("f.yaml", &text).candidates.remove(0);
        let mut applied = world.apply(vec![Change::Put { origin: Origin::Folder, candidate, now_ms: 0 }]);
        applied.problems.sort();
        assert_eq!(applied.problems, world.problems(), "what is said at once is what is said later");
        let view = world.index().services.get(&("a".to_owned(), "web".to_owned()));
        let addresses = view.map(|view| view.addresses.clone()).unwrap_or_default();
        let ranges = &world.settings().ranges;
        assert!(addresses.iter().all(|address| ranges.serve(address)), "{addresses:?}");
        assert!(world.get(&ObjectKey::new(Kind::Service, "a", "web")).is_none() || !addresses.is_empty());
        let words = addresses.iter().map(|address| match address.to_string().as_str() {
            "10.96.0.5" | "fd00:6d77::5" => "chosen",
            _ if address.is_ipv4() => "4",
            _ => "6",
        });
        (words.collect::<Vec<_>>().join(" "), applied.problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn families_are_those_that_were_asked_for() {
        // Aim: both families unless one is asked for, and then no address of the other, in every way that Kubernetes writes it.
        for (spec, wanted) in [
            ("selector: {}", "4 6"),
            ("ipFamilies: [IPv4]", "4"),
            ("ipFamilies: [IPv6]", "6"),
            ("ipFamilies: [IPv4], ipFamilyPolicy: SingleStack", "4"),
            ("ipFamilies: [IPv6], ipFamilyPolicy: SingleStack", "6"),
            ("ipFamilyPolicy: SingleStack", "4"),
            ("ipFamilies: [IPv4], ipFamilyPolicy: PreferDualStack", "4 6"),
            ("ipFamilies: [IPv6, IPv4]", "4 6"),
            ("ipFamilies: [IPv6, IPv4], ipFamilyPolicy: RequireDualStack", "4 6"),
            ("clusterIP: 10.96.0.5", "chosen"),
            ("clusterIP: 'fd00:6d77::5'", "chosen"),
            ("clusterIP: 'fd00:6d77::5', ipFamilyPolicy: SingleStack", "chosen"),
            ("clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5, 'fd00:6d77::5']", "chosen chosen"),
            ("clusterIP: 10.96.0.5, ipFamilyPolicy: PreferDualStack", "chosen 6"),
        ] {
            assert_eq!(placed(spec), (wanted.to_owned(), Vec::new()), "{spec}");
        }
    }

    #[test]
    fn families_that_contradict_themselves_are_refused() {
        // Aim: what cannot be meant is an error at its place, with the remedy.
        for (spec, wanted) in [
            ("ipFamilies: [IPv4, IPv6], ipFamilyPolicy: SingleStack", "spec.ipFamilies: SingleStack allows one family only"),
            ("ipFamilies: [IPv5]", "spec.ipFamilies[0]: unknown value `IPv5` (did you mean `IPv4`?)"),
            ("ipFamilyPolicy: Single", "spec.ipFamilyPolicy: unknown value `Single`"),
            ("ipFamilies: [IPv6], clusterIP: 10.96.0.5", "the Service's own address 10.96.0.5 is of another family"),
        ] {
            let (addresses, problems) = placed(spec);
            assert_eq!(addresses, "", "{spec}");
            assert!(problems.len() == 1 && problems[0].contains(wanted), "{spec}: {problems:?}");
        }
    }

    #[test]
    fn an_address_that_the_mesh_cannot_serve_is_told_and_replaced() {
        // Aim: nobody is left with an address to which nothing leads: the Service has one of ours, and a line says which.
        for (spec, wanted, said) in [
            ("clusterIP: 172.20.4.4", "4", 1),
            ("clusterIPs: [172.20.4.4, 'fd00:6d77::5']", "4 chosen", 1),
            ("clusterIPs: ['2001:db8::1', 172.20.4.4]", "4 6", 2),
            ("clusterIP: 10.77.0.1", "4", 1),
        ] {
            let (addresses, problems) = placed(spec);
            assert_eq!((addresses.as_str(), problems.len()), (wanted, said), "{spec}: {problems:?}");
        }
        let (_, problems) = placed("clusterIP: 172.20.4.4");
        let (before, after) = problems[0].split_once("the Service has 10.").unwrap();
        assert_eq!(
            before,
            "f.yaml:1: warning: Service a/web: spec.clusterIP: 172.20.4.4 lies outside the mesh's ranges 10.96.0.0/12 and fd00:6d77::/108; "
        );
        assert!(after.ends_with(" instead (remove it, choose one of those ranges, or move them with --service-cidr)"), "{after}");
    }
}
