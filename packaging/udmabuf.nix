# In configuration.nix:
#
#   boot.extraModulePackages =
#     [ (config.boot.kernelPackages.callPackage ./udmabuf/packaging/udmabuf.nix { }) ];
#   boot.kernelModules = [ "udmabuf_ext" ];
#   boot.kernelParams = [ "initcall_blacklist=udmabuf_dev_init" ];
#
# Each generation of the system contains a matching kernel, module and parameter.
{ lib, stdenv, kernel, json_c }:

stdenv.mkDerivation {
  pname = "udmabuf";
  version = "1.0-${kernel.version}";
  src = lib.cleanSource ./..;
  nativeBuildInputs = kernel.moduleBuildDependencies;
  buildInputs = [ json_c ];
  hardeningDisable = [ "pic" "format" ];
  dontBuild = true;
  installFlags = [
    "DESTDIR=$(out)"
    "PREFIX=/"
    "DKMS=n"
    "KDIR=${kernel.dev}/lib/modules/${kernel.modDirVersion}/build"
  ];
  meta = {
    description = "Driver that makes dma-bufs from memory of a process";
    license = lib.licenses.gpl2Only;
    platforms = lib.platforms.linux;
  };
}
