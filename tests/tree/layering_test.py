"""Who may include whom: the table below, enforced on every source file.

usage: layering_test.py SOURCE_DIR
"""

import pathlib
import re
import sys
import unittest

ENGINE_FOLDERS = {"engine/base", "engine/kernels", "engine/kv_cache", "engine/model", "engine/route",
                  "engine/scheduler", "engine/text"}

# Layer -> the layers that it may include beside itself. "engine" is the facade: the files right in engine/.
MAY_INCLUDE = {
    "engine/base": set(),
    "engine/kernels": {"engine/base"},
    "engine/route": {"engine/base"},
    "engine/kv_cache": {"engine/base"},
    "engine/text": {"engine/base"},
    "engine/model": {"engine/kernels", "engine/kv_cache", "engine/route", "engine/text", "engine/base"},
    "engine/scheduler": {"engine/kv_cache", "engine/route", "engine/base"},
    "engine": ENGINE_FOLDERS,
    "extract": ENGINE_FOLDERS - {"engine/scheduler"},
    "server": ENGINE_FOLDERS | {"engine", "proto"},
    "client": {"proto"},
}
FILES_NOT_NETWORKS = ("engine", "extract")
NETWORK_HEADER = re.compile(r"(grpc|grpcpp|google/protobuf|boost|prometheus|civetweb|nghttp2)/|openssl/ssl\.h|.*\.pb\.h$|"
                            r"(sys/socket|netinet/.*|arpa/inet|netdb)\.h$")
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?P<mark>["<])(?P<header>[^">]+)[">]', re.MULTILINE)
SOURCE_SUFFIXES = {".h", ".cc", ".cpp", ".hpp", ".inc", ".cu", ".cuh"}


def layer_of(path):
    """The layer of a source file or header, by its path from the top; None for what is not ours."""
    folders = path.split("/")[:-1]
    if not folders:
        return None
    if folders[0] == "engine":
        return "/".join(folders[:2])
    if path.startswith("scion/v1/"):
        return "proto"
    return folders[0] if folders[0] in {"extract", "server", "client", "proto", "tests"} else None


def violations(path, text):
    """What the source file at `path` (from the top) includes and may not, as sentences."""
    layer = layer_of(path)
    if layer not in MAY_INCLUDE:
        return [f"{path}: its folder has no row in the include table"]
    found = []
    for match in INCLUDE.finditer(text):
        header = match["header"]
        included = layer_of(header)
        if match["mark"] == '"' and "/" not in header or "../" in header:
            found.append(f"{path} includes {header}: write the path from the top")
        elif included is not None and included != layer and included not in MAY_INCLUDE[layer]:
            found.append(f"{path} includes {header}: {layer} may not include {included}")
        elif layer.split("/")[0] in FILES_NOT_NETWORKS and NETWORK_HEADER.match(header):
            found.append(f"{path} includes {header}: {layer} knows no network")
    return found


def source_files(top):
    for folder in ("engine", "extract", "server", "client"):
        yield from (path for path in (top / folder).rglob("*") if path.suffix in SOURCE_SUFFIXES)


class LayeringTest(unittest.TestCase):

    def test_every_include_of_the_tree_is_in_the_table(self):
        found, layers = [], set()
        for path in source_files(TOP):
            relative = path.relative_to(TOP).as_posix()
            layers.add(layer_of(relative))
            found += violations(relative, path.read_text())
        self.assertEqual(found, [], "\n" + "\n".join(found))
        self.assertEqual(layers, set(MAY_INCLUDE), "a layer without sources: is the check looking at the right tree?")

    def test_whatever_the_table_does_not_name_is_found(self):
        everything = ENGINE_FOLDERS | {"engine", "extract", "server", "client", "tests"}
        for layer, allowed in MAY_INCLUDE.items():
            for other in everything - {layer}:
                found = violations(f"{layer}/a.cc", f'#include <vector>\n#include "{other}/b.h"\n')
                self.assertEqual(bool(found), other not in allowed, f"{layer} -> {other}: {found}")

    def test_a_network_header_is_found_in_whichever_way_it_is_written(self):
        for header in ("<grpcpp/grpcpp.h>", '"google/protobuf/message.h"', "<boost/asio.hpp>", '"x/y.pb.h"',
                       '"scion/v1/inference.pb.h"', "<openssl/ssl.h>", "<sys/socket.h>"):
            for layer in MAY_INCLUDE:
                found = violations(f"{layer}/a.cc", f"#  include {header}\n")
                network_allowed = layer == "server" or layer == "client"
                self.assertEqual(bool(found), not network_allowed, f"{layer}: {header}: {found}")
        self.assertEqual(violations("engine/base/sha256.cc", "#include <openssl/evp.h>\n"), [])

    def test_a_path_that_hides_the_folder_is_found(self):
        self.assertTrue(violations("client/a.cc", '#include "client.h"\n'))
        self.assertTrue(violations("client/a.cc", '#include "../engine/engine.h"\n'))
        self.assertTrue(violations("engine/new_folder/a.cc", ""))


if __name__ == "__main__":
    TOP = pathlib.Path(sys.argv.pop(1))
    unittest.main()
