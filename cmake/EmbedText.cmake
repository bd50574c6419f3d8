# cmake -DOUT=a.cc -DHEADER=x.h -DNAMES=kA,kB -DFILES=a.py,b.py -P EmbedText.cmake: writes C++ in which each name, which the
# header declares in namespace scion, is a std::string_view of the text of the file at its place.
string(REPLACE "," ";" names "${NAMES}")
string(REPLACE "," ";" files "${FILES}")
set(code "#include \"${HEADER}\"\n\nnamespace scion {\n\n")
foreach(name file IN ZIP_LISTS names files)
  file(READ "${file}" text)
  if(text MATCHES "\\)TEXT\"")
    message(FATAL_ERROR "${file} contains )TEXT\", the end of a literal")
  endif()
  string(APPEND code "const std::string_view ${name} = R\"TEXT(${text})TEXT\";\n\n")
endforeach()
file(WRITE "${OUT}" "${code}}  // namespace scion\n")
