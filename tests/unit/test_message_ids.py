"""MESSAGE_IDs as they were released: journal catalogs, alert rules and people's own filters refer to them.

A new kind is added here by hand. No line is ever changed or taken away, not even when nothing emits its kind any more.
"""

from __future__ import annotations

from typing import Final

from dnsguard.observe.catalog import CATALOG

RELEASED: Final = {
    "started": "1166f648-a089-4437-bd02-71984a02fe38",
    "ready": "2794f5bf-e78f-426f-a9e9-3e1ac19d74a0",
    "stopping": "290ef004-6a80-4e8c-9e0b-72c430ca9ad5",
    "stopped": "be0b0059-1a25-49d0-8214-60b0037a5f53",
    "start_failed": "5dcf6ce2-193e-4f8f-a89d-11ff4d74786f",
    "ended_badly": "2638642f-557e-470e-96be-177f84f12aa4",
    "clock_stepped": "bcc40516-46c8-44c0-9a56-b4b211183dd5",
    "feature_left_out": "a6b0e218-ec3e-43fe-819e-081b6843bb02",
    "ebpf_not_used": "655d355f-eb16-4eb1-99e9-5847ba20760c",
    "policy_loaded": "9f2c3dc6-747b-4505-91d9-f75bc7eb2999",
    "policy_rejected": "fbe581fd-2020-4c8a-849a-43cab186e10f",
    "policy_not_taken": "a747e7be-35ec-4592-8fe4-ca417f5f27b6",
    "policy_warning": "91aeaae4-436f-4caa-a57e-f3eed168302f",
    "restart_needed": "150d3420-8b52-4bbb-91fa-e04eab9ad796",
    "mode_changed": "fce4ee56-5909-4b08-9930-f3b4be947b8e",
    "pod_came": "ee434c7f-412a-48c8-a4d6-b5540078c9a2",
    "pod_changed": "653bb0e5-e6aa-43dc-9abc-fd6c9a0cb559",
    "pod_went": "bdb01abe-f660-41c7-aa74-a60c12c88ebf",
    "pod_conflict": "f077373a-53ff-4fdb-b031-68aa0ba5467b",
    "node_problem": "5c0f4f3e-2b1d-4f0c-9e57-a1d2b8c36e04",
    "sysctl_unusable": "04d8a044-b4e4-46db-a31c-5d6d56e70f34",
    "bpffs_unmounted": "cb3d0b3b-922d-4a9e-8a28-719a422611d2",
    "socket_not_used": "44c85c02-93f2-4238-9a09-2fbc995ef907",
    "query_allowed": "5142958d-bce1-4b00-944e-008113bca5c2",
    "query_denied": "7a46d408-37fd-4be5-87dd-2d463afaf428",
    "query_audited": "0b142dd3-64aa-411b-96fe-692e47ae9945",
    "query_refused": "24c8198c-f8af-46ab-bf7f-2ab0791ffbdf",
    "query_limited": "08c11733-c41b-409b-9eed-c97e8c84358e",
    "query_failed": "455da5bb-2e47-482e-bfe1-c757a62e908a",
    "query_unknown_source": "c2661352-49ff-467c-8f9b-040dbe917920",
    "forwarding_loop": "702a3139-50bf-4b23-a353-1c0c65c986b9",
    "answer_withheld": "4e8116b4-8d2b-4bbc-a403-2fa4f655a219",
    "answer_audited": "fe72e874-d67f-44ce-b1b4-9480299524e2",
    "answer_stale": "49f7e1a6-cd56-4756-9ce8-e4f788e52a10",
    "lease_opened": "f0ccb39c-0e54-4d8f-aa7f-fbb4e88e65a5",
    "lease_ended": "dd5e0abd-2a1c-4ee0-a787-b07d1b7b4b11",
    "lease_refused": "effa8583-c510-4aba-be36-76e1c0f3c6af",
    "leases_purged": "ba41b1e6-51cd-407f-99d1-95b7d3e3f89e",
    "flow_denied": "39379738-7823-4fca-a62b-3f130bd99087",
    "flow_audited": "5c7f722c-ff09-4aa8-a490-046e11d356b3",
    "flows_cut": "1f530db5-6339-4edd-8e52-6aef60d8aad5",
    "seen_file_failed": "ca85cb32-5b72-4283-ba57-29688e4bd871",
    "upstream_down": "b11dbb9c-a77b-47c3-8015-e751d6c5274d",
    "upstream_failing": "8b3465c8-8be5-4c92-bca0-3187fdf47a39",
    "upstream_up": "ae17d0de-b8d9-4450-8e3e-54f70867c15c",
    "kernel_state_repaired": "c0aabd94-3a82-4de3-a734-36189ee14ca2",
    "kernel_state_damaged": "1ec81b39-1bb3-470c-bb0c-7fb1bac55e86",
    "link_without_ebpf": "241271df-256d-4333-96dc-69d0094b9396",
    "conntrack_full": "f204f161-4e8d-4fd4-81b9-a75982a9ea31",
    "conntrack_has_room": "8b47b385-640e-41b1-9d78-4f613cd8a780",
    "changes_missed": "952cb980-08e3-47d9-9007-6a5a0385517d",
    "state_file_set_aside": "b67b4382-17f4-4a5a-b75c-eb853fb39521",
    "state_file_unwritable": "d60cd3bc-559d-4b50-b908-8b81671d8b08",
    "state_file_written": "58bf544d-b1d0-4c9b-9dbd-262468fbea97",
    "descriptors_short": "8013045e-858e-4ba9-8f19-9db26be30674",
    "descriptors_free": "9c63a62a-2f62-4104-8d0c-145eff987f38",
    "runtime_restored": "b76c9935-a4eb-43b0-8356-a4807461b250",
    "runtime_lost": "d8041957-8be9-44f7-8d83-aa084b3e8bda",
    "events_suppressed": "0522d184-7b92-4041-9e88-6aa5190a6049",
    "log_lines_dropped": "045b1edc-998b-4dfb-bae2-2048baff6eda",
    "watcher_cut_off": "b835a16a-c371-40ff-8265-67169da27166",
    "internal_error": "0e15d307-ae19-40af-96db-27ac3dc8f437",
}


def test_message_ids_are_those_that_were_released() -> None:
    assert {kind.value: str(one.message_id) for kind, one in CATALOG.items()} == RELEASED
