use super::*;
use crate::source::parse;
use crate::world::Spec;

/// The policy of that spec, and what is said of it.
fn read(spec: &str) -> (Option<AuthorizationPolicy>, Vec<String>) {
    let text =
        format!("apiVersion: meshwright.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: web, namespace: shop}}\nspec: {spec}\n");
    let candidate = parse("f.yaml", &text).candidates.remove(0);
    let policy = candidate.object.as_ref().map(|object| match &object.spec {
        Spec::AuthorizationPolicy(policy) => (**policy).clone(),
        other => panic!("{other:?}"),
    });
    let said =
        |problem: &crate::world::Problem| problem.to_string().replace("f.yaml:4: ", "").replace("AuthorizationPolicy shop/web: ", "");
    (policy, candidate.problems.iter().map(said).collect())
}

#[test]
fn every_field_is_read() {
    // Aim: what the schema of `kinds.md` shows arrives whole, in the form that proxies are told.
    let (policy, problems) = read(
        r#"
  selector: {matchLabels: {app: store}}
  action: Deny
  dryRun: true
  rules:
    - name: frontends
      from: [{principals: ["spiffe://cluster.local/ns/shop/sa/frontend", "*/sa/checkout", "spiffe://partner.example/*", "*"], namespaces: [shop, "team-*"],
              ipBlocks: [10.0.0.0/8, "2001:db8::1", "::ffff:192.0.2.0/120"], jwt: {issuer: "https://id.example", claims: {groups: [staff], "a.b": ["1"]}}}]
      to: [{ports: [8080], hosts: ["Store.shop.", "*.shop.svc", "store*", "::1"], methods: [GET, PURGE],
            paths: [{value: /v1}, {type: Exact, value: /a//b%2F}, {type: Suffix, value: .php}, {type: Template, value: "/users/{id}/{rest=**}"}],
            headers: [{name: X-Tenant, value: a}, {name: x-b, type: RegularExpression, value: "[0-9]+"}]}]
      not: {from: [{namespaces: [test]}], to: [{methods: [TRACE]}]}
      when: request.headers["x-tenant"] == "a" && source.namespace != "test"
    - {}
"#,
    );
    assert_eq!(problems, [""; 0]);
    let policy = policy.unwrap();
    assert_eq!((policy.action, policy.dry_run, policy.rules.len()), (Action::Deny, true, 2));
    let rule = &policy.rules[0].rule;
    assert_eq!(rule.from[0].ip_blocks, ["10.0.0.0/8", "2001:db8::1/128", "192.0.2.0/24"]);
    assert_eq!(rule.from[0].token.as_ref().unwrap().claims["groups"].values, ["staff"]);
    assert_eq!(rule.to[0].hosts, ["store.shop", "*.shop.svc", "store*", "[::1]"]);
    assert_eq!(rule.to[0].headers[0].name, "x-tenant");
    assert_eq!((rule.to[0].paths.len(), rule.not_from.len(), rule.not_to.len()), (4, 1, 1));
    assert_eq!((rule.name.as_str(), policy.rules[0].line, policy.rules[1].rule.name.as_str()), ("frontends", 9, "1"));
}

#[test]
fn without_anything_it_allows_nobody() {
    // Aim: the defaults are those of the schema: Allow, for the whole namespace, and no rule.
    assert_eq!(read("{}"), (Some(AuthorizationPolicy::default()), Vec::new()));
}

#[test]
fn what_cannot_be_meant_is_refused_at_its_place() {
    // Aim: every slip is an error with its field and a remedy, and never a policy that lets more or fewer in than written.
    for (spec, wanted) in [
        ("{action: allow}", "error: spec.action: unknown value `allow` (did you mean `Allow`?)"),
        ("{rule: []}", "error: spec.rule: unknown field `rule` (did you mean `rules`?)"),
        ("{rules: [{from: []}]}", "error: spec.rules[0].from: an empty list: does it mean all, or none?"),
        ("{rules: [{from: [{}]}]}", "error: spec.rules[0].from[0]: it names no caller"),
        ("{rules: [{to: [{}]}]}", "error: spec.rules[0].to[0]: it asks for nothing"),
        ("{rules: [{not: {}}]}", "error: spec.rules[0].not: it excludes nothing"),
        ("{rules: [{from: [{principals: []}]}]}", "principals: an empty list"),
        ("{rules: [{from: [{principals: [cluster.local/ns/a/sa/b]}]}]}", "(write spiffe://cluster.local/ns/a/sa/b)"),
        ("{rules: [{from: [{principals: ['spiffe://a/*/sa/b']}]}]}", "has `*` in the middle"),
        ("{rules: [{from: [{principals: ['*a*']}]}]}", "has `*` in the middle"),
        ("{rules: [{from: [{principals: ['spiffe://Cluster.local/ns/a/sa/b']}]}]}", "is no identity"),
        ("{rules: [{from: [{principals: ['spiffe://a']}]}]}", "is no identity"),
        ("{rules: [{from: [{principals: ['spiffe://a/b?c']}]}]}", "is no identity"),
        ("{rules: [{from: [{principals: ['spiffe://a//b']}]}]}", "is no identity"),
        ("{rules: [{from: [{namespaces: ['sh*op']}]}]}", "is no name of a namespace"),
        ("{rules: [{from: [{namespaces: ['Shop']}]}]}", "is no name of a namespace"),
        ("{rules: [{from: [{ipBlocks: [10.0.0.0/33]}]}]}", "is no range of addresses"),
        ("{rules: [{from: [{jwt: {claims: {}}}]}]}", "claims are none or too many"),
        ("{rules: [{from: [{jwt: {claims: {a: [1]}}}]}]}", "expected text, found a number (put it in quotes)"),
        ("{rules: [{from: [{jwt: {claims: {'a..b': [x]}}}]}]}", "is no claim"),
        ("{rules: [{to: [{ports: [0]}]}]}", "0 is out of range"),
        ("{rules: [{to: [{hosts: ['a:80']}]}]}", "is no host"),
        ("{rules: [{to: [{methods: ['G T']}]}]}", "is no method"),
        ("{rules: [{to: [{methods: [get]}]}]}", "no client sends `get` (write GET)"),
        ("{rules: [{to: [{paths: [{value: /a/../b}]}]}]}", "are resolved before a request is judged: it would never match"),
        ("{rules: [{to: [{paths: [{type: Template, value: '/{a}/%2e/b'}]}]}]}", "are resolved before a request is judged"),
        ("{rules: [{from: [{principals: ['spiffe://a/b']}]}]}", "is no identity"),
        ("{rules: [{to: [{hosts: ['*.']}]}]}", "is no host"),
        ("{rules: [{to: [{hosts: ['*a']}]}]}", "is no host"),
        ("{rules: [{to: [{paths: [{value: v1}]}]}]}", "it does not begin with `/`"),
        ("{rules: [{to: [{paths: [{value: /a?b}]}]}]}", "a query or fragment is no part of a path"),
        ("{rules: [{to: [{paths: [{value: '/a b'}]}]}]}", "what no URL may hold is written as %XX"),
        ("{rules: [{to: [{paths: [{value: '/a%2'}]}]}]}", "what no URL may hold is written as %XX"),
        ("{rules: [{to: [{paths: [{type: Template, value: '/a{b}'}]}]}]}", "a name stands for a whole element"),
        ("{rules: [{to: [{paths: [{type: Template, value: '/{a=**}/b'}]}]}]}", "can only be the last"),
        ("{rules: [{to: [{paths: [{type: Template, value: '/{a}/{a}'}]}]}]}", "a name stands twice"),
        ("{rules: [{to: [{paths: [{type: Regex, value: '/'}]}]}]}", "unknown value `Regex`"),
        ("{rules: [{to: [{headers: [{name: a, value: b}, {name: A, value: c}]}]}]}", "the header `a` stands twice"),
        ("{rules: [{name: a}, {name: a}]}", "a rule `a` stands twice"),
        ("{rules: [{name: '1'}, {}]}", "a rule `1` stands twice"),
        ("{rules: [{name: 'a b'}]}", "is no name of a rule"),
        ("{rules: [{when: 'request.method =='}]}", "rules[0].when: the condition is not CEL"),
        ("{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: g}]}", "keep one of them"),
        ("{targetRefs: [{kind: Service, group: '', name: web}]}", "unknown value `Service`"),
    ] {
        let (policy, problems) = read(spec);
        assert_eq!(policy, None, "{spec}");
        assert!(problems.iter().any(|problem| problem.contains(wanted)), "{spec}: {problems:?}");
    }
}

#[test]
fn what_holds_otherwise_than_written_is_told() {
    // Aim: a range is cut to what holds, and its author hears so.
    let (policy, problems) = read("{rules: [{from: [{ipBlocks: [10.0.0.1/8]}]}]}");
    assert_eq!(policy.unwrap().rules[0].rule.from[0].ip_blocks, ["10.0.0.0/8"]);
    assert!(
        problems.len() == 1 && problems[0].starts_with("warning: ") && problems[0].contains("10.0.0.0/8 is what holds"),
        "{problems:?}"
    );
}

proptest::proptest! {
    #[test]
    fn any_text_is_survived(text in "[ -~]{0,40}|(spiffe://)?[a-z/*{}=%.:]{0,30}") {
        // Aim: no text in any of the fields makes the door panic.
        let quoted = text.replace('\'', "''");
        let all = format!(
            "{{rules: [{{name: '{quoted}', when: '{quoted}', from: [{{principals: ['{quoted}'], namespaces: ['{quoted}'], ipBlocks: ['{quoted}'], \
             jwt: {{issuer: '{quoted}', claims: {{a: ['{quoted}']}}}}}}], to: [{{hosts: ['{quoted}'], methods: ['{quoted}'], \
             paths: [{{value: '{quoted}'}}, {{type: Template, value: '{quoted}'}}, {{type: Suffix, value: '{quoted}'}}]}}]}}]}}"
        );
        let _ = read(&all);
    }
}
